//! `/dev/sev-guest`: requests to the PSP (`include/uapi/linux/sev-guest.h`).
#![allow(unsafe_code)]

use super::Errno;
use core::ffi::c_void;
use rustix::fd::AsFd;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// Bytes that the caller chooses and the report repeats.
pub const REPORT_DATA: usize = 64;
/// Bytes of a response: a header of [`RESPONSE_HEADER`] bytes, then the report.
pub const RESPONSE: usize = 4000;
/// Bytes before the report: status, size, reserved (SEV-SNP ABI, MSG_REPORT_RSP).
pub const RESPONSE_HEADER: usize = 32;

/// `struct snp_report_req`.
#[repr(C)]
struct ReportRequest {
    user_data: [u8; REPORT_DATA],
    vmpl: u32,
    reserved: [u8; 28],
}

/// `struct snp_guest_request_ioctl`.
#[repr(C)]
struct GuestRequest {
    message_version: u8,
    request: u64,
    response: u64,
    exit_info_2: u64,
}

impl GuestRequest {
    const GET_REPORT: Opcode = opcode::read_write::<Self>(b'S', 0);
}

// SAFETY: the opcode is SNP_GET_REPORT, whose argument is a `struct snp_guest_request_ioctl`; `as_ptr` gives one.
unsafe impl Ioctl for &mut GuestRequest {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        GuestRequest::GET_REPORT
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut **self).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// Asks the PSP for a report with this data, for VMPL 0. Gives the whole response.
pub fn report(device: impl AsFd, report_data: &[u8; REPORT_DATA]) -> Result<[u8; RESPONSE], Errno> {
    let request = ReportRequest { user_data: *report_data, vmpl: 0, reserved: [0; 28] };
    let mut response = [0; RESPONSE];
    let mut argument = GuestRequest {
        message_version: 1,
        request: &raw const request as u64,
        response: response.as_mut_ptr() as u64,
        exit_info_2: 0,
    };
    // SAFETY: the kernel reads a `snp_report_req` at `request` and writes at most RESPONSE bytes (`snp_report_resp`) at
    // `response`; both are that long and outlive the call.
    unsafe { ioctl(device, &mut argument) }?;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!(size_of::<ReportRequest>(), 96);
        assert_eq!(size_of::<GuestRequest>(), 32);
        assert_eq!(GuestRequest::GET_REPORT, 0xc020_5300);
    }
}
