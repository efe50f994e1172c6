//! `[instance_type.NAME.tls]`: whom to believe to be a worker, and what to show it.

use std::path::PathBuf;

use super::reader::Table;
use super::values::ServerName;
use crate::types::tls::{CertificateFiles, WorkerTls};

/// Reads the table `tls` of an instance type; `is_used` where an address of it is `https`. `None`: it says
/// nothing but what holds anyway.
pub(super) fn read(instance_type: &Table<'_>, is_used: bool) -> Option<WorkerTls> {
    let table = instance_type.table("tls")?;
    if !is_used {
        let rule = "is about workers that speak TLS, which are those of a static provider whose `addresses` are https";
        instance_type.refuse("tls", rule);
    }
    let verify = table.or("verify", true);
    let ca_file = table.get::<PathBuf>("ca_file").map(|found| found.value);
    let server_name = table.get::<ServerName>("server_name").map(|found| found.value.0);
    if !verify {
        let rule =
            "`verify` = false: whoever answers at their addresses is believed to be these workers";
        table.warn_at("verify", rule.to_owned());
    }
    if !verify && ca_file.is_some() {
        table.warn_at("ca_file", "`ca_file` vouches for nobody while `verify` is false".to_owned());
    }
    let chain = table.get::<PathBuf>("client_cert");
    let key = table.get::<PathBuf>("client_key");
    match (&chain, &key) {
        (Some(_), None) => table.must_have("client_key", "the file with the key of `client_cert`"),
        (None, Some(_)) => {
            table.must_have("client_cert", "the file with the certificate of `client_key`");
        }
        _ => {}
    }
    let client =
        chain.zip(key).map(|(chain, key)| CertificateFiles { chain: chain.value, key: key.value });
    let tls = WorkerTls { ca_file, client, server_name, verify };
    (tls != WorkerTls::default()).then_some(tls)
}
