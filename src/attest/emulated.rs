//! Reports of an emulated PSP, for machines without SEV-SNP. An image with this code is another image, with another
//! measurement, and it never looks at hardware (difference D9).
//!
//! Protocol: the guest connects to the host's [`PORT`], sends REPORT_DATA, reads the report up to the end of the stream.

use super::report::{REPORT_DATA, Report};
use super::{AttestError, InvalidReport};
use crate::linux::{Errno, vsock};
use rustix::event::{PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// What the console calls it.
pub(super) const NAME: &str = "the emulated PSP";

/// vsock port of the emulated PSP on the host.
const PORT: u32 = 5043;
/// How long each step may take.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// The report with this data.
pub(super) fn report(report_data: &[u8; REPORT_DATA]) -> Result<[u8; Report::LENGTH], AttestError> {
    let psp = vsock::connect_to_host(PORT, PATIENCE).map_err(AttestError::Kernel)?;
    exchange(&psp, report_data)
}

fn exchange(psp: &OwnedFd, report_data: &[u8; REPORT_DATA]) -> Result<[u8; Report::LENGTH], AttestError> {
    let kernel = AttestError::Kernel;
    // A new connection takes 64 bytes at once.
    if send(psp, report_data, SendFlags::NOSIGNAL).map_err(kernel)? != REPORT_DATA {
        return Err(AttestError::Kernel(Errno::IO));
    }
    // One byte more than a report, to see that there is none.
    let mut answer = [0; Report::LENGTH + 1];
    let mut length = 0;
    while let Some(rest) = answer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        vsock::wait(psp, PollFlags::IN, PATIENCE).map_err(kernel)?;
        match recv(psp, rest, RecvFlags::empty()) {
            Ok((0, _)) => break,
            Ok((more, _)) => length += more,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(AttestError::Kernel(errno)),
        }
    }
    match answer.first_chunk() {
        Some(report) if length == Report::LENGTH => Ok(*report),
        _ => Err(AttestError::Invalid(InvalidReport::Length(length))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn answered_with(answer: &[u8]) -> Result<[u8; Report::LENGTH], AttestError> {
        let (guest, mut host) = UnixStream::pair().unwrap();
        host.write_all(answer).unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        let report = exchange(&guest.into(), &[9; REPORT_DATA]);
        let mut asked = Vec::new();
        host.read_to_end(&mut asked).unwrap();
        assert_eq!(asked, [9; REPORT_DATA]);
        report
    }

    #[test]
    fn a_report_of_the_right_length_is_taken() {
        assert_eq!(answered_with(&[7; Report::LENGTH]), Ok([7; Report::LENGTH]));
    }

    #[test]
    fn d9_an_answer_of_any_other_length_is_refused() {
        for length in [0, 1, Report::LENGTH - 1, Report::LENGTH + 1] {
            assert_eq!(
                answered_with(&std::vec![7; length]),
                Err(AttestError::Invalid(InvalidReport::Length(length)))
            );
        }
    }
}
