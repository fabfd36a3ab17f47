//! Which processes are there: each holds a lock that the kernel releases with the process.
//!
//! A process's number says less than that. It is given to somebody else when the process is gone, and what may be asked
//! about it depends on users and on how /proc is mounted. Here a byte of a file that all of them have open stands for each
//! number, and a record lock (POSIX `fcntl`) on it is held by that one process, not by those that it forks. It would be
//! lost if the process closed a descriptor of the file: there is one, which nobody else knows.
#![expect(unsafe_code, reason = "record locks on a range have no safe wrapper")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// The file, for the processes that will be forked; it stays empty.
pub fn file() -> io::Result<OwnedFd> {
    // SAFETY: the name is a string.
    let descriptor = unsafe { libc::memfd_create(c"presence".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// From now on to its end, this process is there.
pub fn enter(file: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    ask(file, libc::F_SETLK, number).map(|_| ())
}

/// Whether another process of this number is there, as long as nobody says otherwise.
pub fn is_there(file: BorrowedFd<'_>, number: u32) -> bool {
    ask(file, libc::F_GETLK, number).map_or(true, |found| found != libc::F_UNLCK)
}

/// Asks for the write lock that stands for a number, or for what is in its way; the type of the lock comes back.
fn ask(file: BorrowedFd<'_>, command: libc::c_int, number: u32) -> io::Result<libc::c_int> {
    // SAFETY: plain data, for which all zeroes are a value.
    let mut lock: libc::flock = unsafe { core::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as _;
    lock.l_whence = libc::SEEK_SET as _;
    (lock.l_start, lock.l_len) = (number.into(), 1);
    // SAFETY: the descriptor is open while it is borrowed, and the structure live.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock.l_type.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::{fd::AsFd as _, unix::process::CommandExt as _},
        process::{Child, Command},
    };

    use super::*;

    /// A process that has entered under `number`.
    fn process(file: &OwnedFd, number: u32) -> Child {
        let file = file.as_raw_fd();
        let mut command = Command::new("sleep");
        let entered = move || {
            // SAFETY: the descriptor is open, in the fork too.
            enter(unsafe { BorrowedFd::borrow_raw(file) }, number)?;
            // SAFETY: as above. Closed on exec, it would take the lock with it.
            unsafe { libc::fcntl(file, libc::F_SETFD, 0) };
            Ok(())
        };
        // SAFETY: the closure calls nothing but the kernel.
        unsafe { command.arg("60").pre_exec(entered) }.spawn().expect("there is a program sleep")
    }

    #[test]
    fn a_process_is_there_until_its_end() {
        let open = file().unwrap();
        let file = open.as_fd();
        assert!(!is_there(file, 7));
        let others = [(process(&open, 7), 7), (process(&open, 8), 8)];
        assert!(is_there(file, 7) && is_there(file, 8) && !is_there(file, 6) && !is_there(file, 9));
        // There can be one of a number.
        assert!(enter(file, 7).is_err());
        for (mut process, number) in others {
            process.kill().unwrap();
            process.wait().unwrap();
            assert!(!is_there(file, number));
        }
        assert!(enter(file, 7).is_ok());
        // A process does not see itself.
        assert!(!is_there(file, 7));
    }
}
