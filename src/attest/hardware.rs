//! Reports of the PSP, through the kernel: `/dev/sev-guest`, or where that is not there configfs-tsm.

use super::AttestError;
use super::report::{REPORT_DATA, Report};
use crate::linux::{Errno, sev};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::{read, write};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// What the console calls it.
pub(super) const NAME: &str = "the PSP";

const DEVICE: &str = "/dev/sev-guest";
const CONFIGFS: &str = "/sys/kernel/config";
/// Any name will do; there is one process.
const ENTRY: &str = "/sys/kernel/config/tsm/report/parma";
/// What configfs-tsm calls SEV-SNP (`Documentation/ABI/testing/configfs-tsm-report`).
const PROVIDER: &[u8] = b"sev_guest\n";

/// The report with this data.
pub(super) fn report(report_data: &[u8; REPORT_DATA]) -> Result<[u8; Report::LENGTH], AttestError> {
    match openat(CWD, DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(device) => from_device(device, report_data),
        Err(Errno::NOENT) => from_configfs(report_data).map_err(AttestError::Kernel),
        Err(errno) => Err(AttestError::Kernel(errno)),
    }
}

fn from_device(
    device: impl AsFd,
    report_data: &[u8; REPORT_DATA],
) -> Result<[u8; Report::LENGTH], AttestError> {
    in_response(&sev::report(device, report_data).map_err(AttestError::Kernel)?)
}

/// The report in a response of the PSP (SEV-SNP ABI, MSG_REPORT_RSP): status, size, reserved bytes, report.
fn in_response(response: &[u8; sev::RESPONSE]) -> Result<[u8; Report::LENGTH], AttestError> {
    let (header, body) = response.split_at(sev::RESPONSE_HEADER);
    let number = |at: usize| {
        header.get(at..).and_then(<[u8]>::first_chunk).map_or(u32::MAX, |b| u32::from_le_bytes(*b))
    };
    match (number(0), number(4) as usize, body.first_chunk()) {
        (0, Report::LENGTH, Some(report)) => Ok(*report),
        (0, size, _) => Err(AttestError::Invalid(super::InvalidReport::Length(size))),
        (status, ..) => Err(AttestError::Psp(status)),
    }
}

fn from_configfs(report_data: &[u8; REPORT_DATA]) -> Result<[u8; Report::LENGTH], Errno> {
    mount(
        "configfs",
        CONFIGFS,
        "configfs",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        c"",
    )?;
    let report = mkdirat(CWD, ENTRY, Mode::RWXU).and_then(|()| {
        let report = from_entry(report_data);
        unlinkat(CWD, ENTRY, AtFlags::REMOVEDIR)?;
        report
    });
    unmount(CONFIGFS, UnmountFlags::empty())?;
    report
}

fn from_entry(report_data: &[u8; REPORT_DATA]) -> Result<[u8; Report::LENGTH], Errno> {
    let entry = openat(CWD, ENTRY, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let attribute = |name: &str, flags: OFlags| openat(&entry, name, flags | OFlags::CLOEXEC, Mode::empty());
    let mut provider = [0; 32];
    let length = read_whole(attribute("provider", OFlags::RDONLY)?, &mut provider)?;
    if provider.get(..length) != Some(PROVIDER) {
        return Err(Errno::NODEV);
    }
    if write(attribute("inblob", OFlags::WRONLY)?, report_data)? != REPORT_DATA {
        return Err(Errno::IO);
    }
    // One byte more than a report, to see that there is none.
    let mut report = [0; Report::LENGTH + 1];
    let length = read_whole(attribute("outblob", OFlags::RDONLY)?, &mut report)?;
    match report.first_chunk() {
        Some(report) if length == Report::LENGTH => Ok(*report),
        _ => Err(Errno::MSGSIZE),
    }
}

/// Reads until the end of the file or of `bytes`; gives how much there was.
fn read_whole(file: OwnedFd, bytes: &mut [u8]) -> Result<usize, Errno> {
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match read(&file, rest) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::InvalidReport;

    fn response(status: u32, size: u32) -> [u8; sev::RESPONSE] {
        let mut response = [0x5a; sev::RESPONSE];
        response[..4].copy_from_slice(&status.to_le_bytes());
        response[4..8].copy_from_slice(&size.to_le_bytes());
        response
    }

    #[test]
    fn d9_only_a_success_of_the_right_size_gives_a_report() {
        assert_eq!(in_response(&response(0, 1184)), Ok([0x5a; Report::LENGTH]));
        assert_eq!(in_response(&response(0x16, 1184)), Err(AttestError::Psp(0x16)));
        assert_eq!(in_response(&response(0, 0)), Err(AttestError::Invalid(InvalidReport::Length(0))));
        assert_eq!(in_response(&response(0, 1185)), Err(AttestError::Invalid(InvalidReport::Length(1185))));
    }

    #[test]
    fn a_file_is_read_to_its_end_or_to_the_end_of_the_buffer() {
        let file = || openat(CWD, "Cargo.toml", OFlags::RDONLY, Mode::empty()).unwrap();
        let whole = std::fs::read("Cargo.toml").unwrap();
        let mut bytes = std::vec![0; whole.len() + 1];
        assert_eq!(read_whole(file(), &mut bytes), Ok(whole.len()));
        assert_eq!(bytes[..whole.len()], whole);
        assert_eq!(read_whole(file(), &mut [0; 7]), Ok(7));
    }
}
