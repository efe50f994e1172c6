//! A proxy's name. The manager remembers every proxy that it has heard, since one that is cut off may
//! still serve; so a proxy that was killed and started again must be known as the same one, or the dead
//! one would hold up drains. The name is kept in a file, and the file is locked while its owner lives:
//! where another process has the lock (an upgrade, say), this one takes a name of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::runtime::rng;
use crate::types::ProxyId;

/// Longer than any name.
const LONGEST: u64 = 1_024;

/// The name, and the lock that makes it this process's.
#[derive(Debug)]
pub struct Identity {
    /// The name.
    pub id: ProxyId,
    // The lock lives as long as the open file.
    _file: Option<File>,
}

impl Identity {
    /// The name kept beside `path`, the file whose owner it is; a new one where none is kept, where
    /// another process lives under it, or where it cannot be kept.
    #[must_use]
    pub fn claim(path: &Path) -> Self {
        let path = beside(path);
        match kept(&path) {
            Ok(Some((id, file))) => Self { id, _file: Some(file) },
            Ok(None) => Self { id: fresh(), _file: None },
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot keep this proxy's name; after a crash instances may drain to their deadlines on its account");
                Self { id: fresh(), _file: None }
            }
        }
    }
}

/// `None` when another process lives under the name.
fn kept(path: &Path) -> io::Result<Option<(ProxyId, File)>> {
    let mut file =
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
        Err(std::fs::TryLockError::Error(error)) => return Err(error),
    }
    let mut name = Vec::new();
    Read::by_ref(&mut file).take(LONGEST).read_to_end(&mut name)?;
    let name = String::from_utf8(name).ok().and_then(|name| ProxyId::new(name.trim()).ok());
    if let Some(id) = name {
        return Ok(Some((id, file)));
    }
    let id = fresh();
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(id.as_str().as_bytes())?;
    Ok(Some((id, file)))
}

fn fresh() -> ProxyId {
    ProxyId::new(format!("proxy-{}-{}", std::process::id(), rng::unique_suffix()))
        .expect("digits, letters and hyphens")
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".proxy");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_outlives_its_process_and_is_nobody_elses_meanwhile() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("table.json");
        let first = Identity::claim(&path);
        let beside_it = Identity::claim(&path);
        assert_ne!(first.id, beside_it.id);
        let name = first.id.clone();
        drop(first);
        assert_eq!(Identity::claim(&path).id, name);
    }

    #[test]
    fn garbage_and_places_that_cannot_be_written_give_a_fresh_name() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("table.json");
        std::fs::write(beside(&path), "not a name!\n/").expect("written");
        let id = Identity::claim(&path).id;
        assert_eq!(Identity::claim(&path).id, id, "it was written over");
        let nowhere = Identity::claim(&dir.path().join("absent").join("table.json"));
        assert_ne!(nowhere.id, id);
    }
}
