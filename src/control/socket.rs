//! The control socket's place in the file system: whose it is, and who may open it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon has it.
    #[error(
        "the control socket {} is in use by another process{}; stop that one, or choose another \
         path in [control]",
        .path.display(),
        .pid.map(|pid| format!(", {pid}")).unwrap_or_default()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The process, if it told.
        pid: Option<u32>,
    },
    /// What stands at the path is somebody's file.
    #[error("{} is not a socket; move it away, or choose another path in [control]", .path.display())]
    NotASocket {
        /// What stands there.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {operation} {}", .path.display())]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

fn system<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> SocketError + 'a {
    move |source| SocketError::System { operation, path: path.to_owned(), source }
}

/// A listening socket at its path, and the lock that makes the path ours. Dropping it removes the
/// socket; the lock file stays, for removing it would let two daemons lock different files.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) listener: UnixListener,
    path: PathBuf,
    _lock: File,
}

impl Claimed {
    /// Takes the path: creates its folder if there is none, locks `<path>.lock`, replaces a socket
    /// that nobody listens on.
    pub(super) fn claim(path: &Path) -> Result<Self, SocketError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(system("create the folder", folder))?;
        }
        let lock = lock(path)?;
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(SocketError::NotASocket { path: path.to_owned() });
            }
            // Somebody may listen who knows nothing of the lock.
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(SocketError::InUse { path: path.to_owned(), pid: None });
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(system("look at", path)(error));
            }
            _ => {}
        }
        let listener = bind(path).map_err(system("listen on the control socket", path))?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn lock(path: &Path) -> Result<File, SocketError> {
    let lock_path = with_suffix(path, ".lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&lock_path).map_err(system("open", &lock_path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let read = (&file).take(32).read_to_string(&mut pid);
            let pid = read.ok().and_then(|_| pid.trim().parse().ok());
            return Err(SocketError::InUse { path: path.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(system("lock", &lock_path)(error)),
    }
    let told = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    told.map_err(system("write to", &lock_path))?;
    Ok(file)
}

/// Listens at `path` with mode 0600. The socket is made in a folder that only we can enter, and
/// moved to its place when its mode is set: there is no moment at which another user could
/// connect, and none at which a socket that is replaced is missing.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let staging = with_suffix(path, ".new");
    let socket = staging.join("s");
    // What an earlier start left when it was killed between these steps.
    for removed in [fs::remove_file(&socket), fs::remove_dir(&staging)] {
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    DirBuilder::new().mode(0o700).create(&staging)?;
    let listening = UnixListener::bind(&socket).and_then(|listener| {
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        fs::rename(&socket, path)?;
        Ok(listener)
    });
    if listening.is_err() {
        // The error of interest is the first one.
        fs::remove_file(&socket).ok();
    }
    fs::remove_dir(&staging)?;
    listening
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_socket_is_private_and_goes_away_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/s.sock");
        let claimed = Claimed::claim(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(claimed);
        assert!(!path.exists());
        let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "only the lock file is left: {names:?}");
    }

    #[test]
    fn a_path_is_claimed_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let first = Claimed::claim(&path).unwrap();
        let message = Claimed::claim(&path).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(message.contains("s.sock is in use by another process"), "{message}");
        assert!(message.contains(&pid.to_string()), "{message}");
        drop(first);
        Claimed::claim(&path).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(Claimed::claim(&path), Err(SocketError::InUse { pid: None, .. })));
        drop(foreign);
        assert!(path.exists());
        let staging = folder.path().join("s.sock.new");
        fs::create_dir(&staging).unwrap();
        fs::write(staging.join("s"), "left by a killed start").unwrap();
        Claimed::claim(&path).unwrap();
        assert!(!staging.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Claimed::claim(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
