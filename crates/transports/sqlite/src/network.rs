//! File systems on which several machines would see one file: write-ahead logging is not for them.

use std::path::Path;

use throughline_core::{Error, ErrorKind, Result};

/// What a path is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Local,
    /// A network's, by name.
    Network(&'static str),
    /// Either, by name: a program or a hypervisor serves it.
    Unknown(&'static str),
}

/// By the numbers of `statfs(2)` and the kernel's `magic.h`.
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux tells"))]
fn kind(magic: u32) -> Kind {
    match magic {
        0x6969 => Kind::Network("NFS"),
        0x517B | 0xFE53_4D42 | 0xFF53_4D42 => Kind::Network("SMB"),
        0x5346_414F | 0x6B41_4653 => Kind::Network("AFS"),
        0x00C3_6400 => Kind::Network("Ceph"),
        0x7375_7245 => Kind::Network("Coda"),
        0x0BD0_0BD0 => Kind::Network("Lustre"),
        0x0102_1997 => Kind::Unknown("9p"),
        0x6573_5546 => Kind::Unknown("FUSE"),
        _ => Kind::Local,
    }
}

/// What a file, or the folder that it is to be in, is on. What cannot be told is taken for local.
#[cfg(target_os = "linux")]
pub(crate) fn of(path: &Path) -> Kind {
    let folder = path.parent().unwrap_or(path);
    // By its path: opening and closing the file itself would drop SQLite's locks on it.
    match rustix::fs::statfs(if path.exists() { path } else { folder }) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "32 bits, whatever the type"
        )]
        Ok(found) => kind(found.f_type as u32),
        Err(_) => Kind::Local,
    }
}

/// What a file is on, which only Linux tells so.
#[cfg(not(target_os = "linux"))]
pub(crate) fn of(_path: &Path) -> Kind {
    Kind::Local
}

/// Refuses a network's file system.
pub(crate) fn check(path: &Path) -> Result<()> {
    match of(path) {
        Kind::Network(name) => Err(refused(name)),
        Kind::Local | Kind::Unknown(_) => Ok(()),
    }
}

fn refused(name: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "the file is on {name}, a network's file system, where SQLite's write-ahead log cannot be shared and messages \
             would be lost; put it on a local disk, and use a broker between machines"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_by_their_magic_numbers() {
        assert_eq!(kind(0x6969), Kind::Network("NFS"));
        assert_eq!(kind(0xFF53_4D42), Kind::Network("SMB"));
        assert_eq!(kind(0x6573_5546), Kind::Unknown("FUSE"));
        for local in [0xEF53, 0x0102_1994, 0x9123_683E, 0x5846_5342, 0x794C_7630] {
            assert_eq!(kind(local), Kind::Local);
        }
        assert!(refused("NFS").to_string().contains("local disk"));
        assert!(check(Path::new("/tmp/x.db")).is_ok());
    }
}
