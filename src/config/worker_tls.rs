//! `[instance_type.NAME.tls]` and `[proxy.manager_tls]`: whom to believe to be a worker, or the manager, and what to
//! show it.

use std::path::PathBuf;

use super::reader::Table;
use super::values::ServerName;
use crate::types::tls::{CertificateFiles, WorkerTls};

/// Reads the table `tls` of an instance type; `is_used` where an address of it is `https`. `None`: it says
/// nothing but what holds anyway.
pub(super) fn read(instance_type: &Table<'_>, is_used: bool) -> Option<WorkerTls> {
    if !is_used {
        let rule = "is about workers that speak TLS, which are those of a static provider whose `addresses` are https";
        instance_type.refuse("tls", rule);
    }
    read_table(
        &instance_type.table("tls")?,
        "whoever answers at their addresses is believed to be these workers",
    )
}

/// Reads the table `manager_tls` of the proxy; `is_used` where its manager is `https`.
pub(super) fn read_of_manager(proxy: &Table<'_>, is_used: bool) -> Option<WorkerTls> {
    if !is_used {
        proxy.refuse("manager_tls", "is about a `manager` whose address is https");
    }
    read_table(
        &proxy.table("manager_tls")?,
        "whoever answers at its address is believed to be the manager",
    )
}

fn read_table(table: &Table<'_>, unless_verified: &str) -> Option<WorkerTls> {
    let verify = table.or("verify", true);
    let ca_file = table.get::<PathBuf>("ca_file").map(|found| found.value);
    let server_name = table.get::<ServerName>("server_name").map(|found| found.value.0);
    if !verify {
        table.warn_at("verify", format!("`verify` = false: {unless_verified}"));
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
