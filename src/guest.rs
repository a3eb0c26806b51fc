//! The guest that the gate's decisions act on: layer devices, overlays, containers, the log.

use crate::attest::{self, AttestError, Report};
use crate::container::Containers;
use crate::gate::action::{
    ActError, Actor, CreateContainer, DeliverSecret, DumpStack, Endorse, ExecExternal, ExecInContainer,
    GetUsage, KeepKey, MountDevice, MountOverlay, MountScratch, MountVolume, Permit, ProcessId,
    ResizeTerminal, SetLogging, SetUpNetwork, ShutdownContainer, SignalProcess, UnmountDevice,
    UnmountOverlay, UnmountScratch, UnmountVolume, UpdateContainer, User,
};
use crate::gate::fields::{ContainerId, UserSpec};
use crate::linux::{Errno, console};
use crate::target::{Disks, Layers, failed, mount_overlay, unmount_overlay};
use crate::wire::{Step, Usage};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::read;
use rustix::time::{ClockId, clock_gettime};

/// Everything that a permit can change.
#[derive(Debug)]
pub struct Guest {
    /// The layer devices.
    pub layers: Layers,
    /// Scratch devices and data volumes.
    pub disks: Disks,
    /// The containers.
    pub containers: Containers,
    /// Whether the guest says on the console what it does.
    pub logging: bool,
}

impl Actor for Guest {
    fn mount_device(&mut self, permit: Permit<MountDevice>) -> Result<(), ActError> {
        self.layers.mount_device(permit)
    }

    fn unmount_device(&mut self, permit: Permit<UnmountDevice>) -> Result<(), ActError> {
        self.layers.unmount_device(permit)
    }

    fn mount_scratch(&mut self, permit: Permit<MountScratch>) -> Result<(), ActError> {
        self.disks.mount_scratch(permit)
    }

    fn unmount_scratch(&mut self, permit: Permit<UnmountScratch>) -> Result<(), ActError> {
        self.disks.unmount_scratch(permit)
    }

    fn mount_volume(&mut self, permit: Permit<MountVolume>) -> Result<u64, ActError> {
        self.disks.mount_volume(permit)
    }

    fn unmount_volume(&mut self, permit: Permit<UnmountVolume>) -> Result<(), ActError> {
        self.disks.unmount_volume(permit)
    }

    fn mount_overlay(&mut self, permit: Permit<MountOverlay>) -> Result<(), ActError> {
        mount_overlay(permit)
    }

    fn unmount_overlay(&mut self, permit: Permit<UnmountOverlay>) -> Result<(), ActError> {
        unmount_overlay(permit)
    }

    fn create_container(&mut self, permit: Permit<CreateContainer<'_>>) -> Result<(), ActError> {
        self.containers.create_container(permit)
    }

    fn exec_in_container(&mut self, permit: Permit<ExecInContainer<'_>>) -> Result<(), ActError> {
        self.containers.exec_in_container(permit)
    }

    fn signal_process(&mut self, permit: Permit<SignalProcess>) -> Result<(), ActError> {
        self.containers.signal_process(permit)
    }

    fn resize_terminal(&mut self, permit: Permit<ResizeTerminal>) -> Result<(), ActError> {
        self.containers.resize_terminal(permit)
    }

    fn shutdown_container(&mut self, permit: Permit<ShutdownContainer>) -> Result<(), ActError> {
        self.containers.shutdown_container(permit)
    }

    fn update_container(&mut self, permit: Permit<UpdateContainer>) -> Result<(), ActError> {
        self.containers.update_container(permit)
    }

    fn usage(&mut self, permit: Permit<GetUsage>) -> Result<Usage, ActError> {
        self.containers.usage(permit)
    }

    fn forget(&mut self, process: ProcessId) {
        self.containers.forget(process);
    }

    fn set_logging(&mut self, permit: Permit<SetLogging>) -> Result<(), ActError> {
        self.logging = permit.into_action().enabled;
        if self.logging
            && let Some(kib) = resident_kib()
        {
            let spent = clock_gettime(ClockId::ProcessCPUTime);
            let milliseconds = spent.tv_sec * 1000 + spent.tv_nsec / 1_000_000;
            console::line(format_args!("memory: {kib} KiB, processor: {milliseconds} ms"));
        }
        Ok(())
    }

    fn set_up_network(&mut self, permit: Permit<SetUpNetwork<'_>>) -> Result<(), ActError> {
        self.containers.set_up_network(permit)
    }

    fn keep_key(&mut self, permit: Permit<KeepKey>) -> Result<(), ActError> {
        let action = permit.into_action();
        let kept = self.disks.keys.keep(&action.key, action.least_generation);
        kept.map_err(|errno| failed(Step::ReleaseKey, errno, true))
    }

    fn endorse(&mut self, permit: Permit<Endorse<'_>>) -> Result<(), ActError> {
        self.containers.endorse(permit)
    }

    fn deliver_secret(&mut self, permit: Permit<DeliverSecret<'_>>) -> Result<(), ActError> {
        self.containers.deliver_secret(permit)
    }

    fn random(&self) -> Result<[u8; 32], ActError> {
        let mut random = [0; 32];
        attest::fill_random(&mut random).map_err(|errno| failed(Step::Report, errno, true))?;
        Ok(random)
    }

    fn report(&self, data: &[u8; 64]) -> Result<[u8; Report::LENGTH], ActError> {
        match attest::report_over(data) {
            Ok(report) => Ok(*report.bytes()),
            Err(AttestError::Kernel(errno)) => Err(failed(Step::Report, errno, true)),
            Err(_) => Err(failed(Step::Report, Errno::IO, true)),
        }
    }

    fn exec_external(&mut self, permit: Permit<ExecExternal<'_>>) -> Result<(), ActError> {
        let ExecExternal { .. } = permit.into_action();
        // There is no program in the guest but this one, which is running.
        let errno = Errno::NOENT.raw_os_error() as u16;
        Err(ActError { step: Step::Execute, errno, undone: true })
    }

    fn dump_stack(&self, permit: Permit<DumpStack>) -> Result<Option<u8>, ActError> {
        self.containers.dump_stack(permit)
    }

    fn resolve_user(&self, container: &ContainerId, user: UserSpec<'_>) -> Result<User, ActError> {
        self.containers.resolve_user(container, user)
    }
}

/// Memory that this process has in use, as the kernel counts it (proc_pid_statm(5), the second number, in pages).
fn resident_kib() -> Option<u64> {
    let statm = openat(CWD, c"/proc/self/statm", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0; 64];
    let length = read(statm, &mut text).ok()?;
    let pages: u64 = core::str::from_utf8(text.get(..length)?).ok()?.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(4)
}
