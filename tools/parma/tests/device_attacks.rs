//! A disk that breaks the protocol of virtio: attack B05 on the real VM. The device is ours, by vhost-user, so that the guest's
//! driver sees every byte that it writes; it serves a layer honestly until a test has it lie.
//!
//! What a host may do is withhold what it holds. What it may not: bring the guest's kernel down or out of step, or have a
//! container read what is not in its layer.

mod support;

use parma_guest::wire::{ExitStatus, Request, Stdio, Stream};
use parma_policy::generate::GenerateOptions;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{OUTPUT, READER, arguments, id, joined, read_until, stage, tar};
use tar::EntryType;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT as _};
use virtio_queue::{QueueOwnedT as _, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestAddressSpace as _, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

/// How the device breaks the protocol when it serves a read. Source: virtio 1.2, 2.7 (split virtqueues) and 5.2 (block device).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// None.
    Honest,
    /// It returns a buffer with a number that no queue has.
    UnknownBuffer,
    /// It returns a buffer twice.
    BufferTwice,
    /// It says that it wrote more than the buffer holds.
    Length,
    /// It says that it returned more buffers than there are.
    Index,
    /// It interrupts without end, and for nothing.
    Interrupts,
    /// It rewrites the table of descriptors while the request is under way.
    Descriptors,
    /// It answers with a status that does not exist.
    Status,
    /// It says that it read, and did not.
    Nothing,
    /// Its own part of the ring says when it wants to hear of requests; it says anything there.
    EventIndex,
    /// It goes away.
    Gone,
}

const SECTOR: usize = 512;
const RING: u16 = 128;
const READ: u32 = 0;
const GET_ID: u32 = 8;
const OK: u8 = 0;
const VIRTIO_RING_F_INDIRECT_DESC: u64 = 1 << 28;
const VIRTIO_RING_F_EVENT_IDX: u64 = 1 << 29;
const VIRTIO_F_VERSION_1: u64 = 1 << 32;
const VIRTIO_BLK_F_RO: u64 = 1 << 5;
/// Interrupts for nothing, of one request.
const STORM: usize = 20_000;

type Memory = GuestMemoryMmap<()>;

struct Device {
    content: Vec<u8>,
    serial: [u8; 20],
    lie: Lie,
    /// Whether it lies yet.
    armed: Arc<AtomicBool>,
    memory: Option<GuestMemoryAtomic<Memory>>,
}

/// The device's part of a split virtqueue, written as it likes.
struct Used<'a> {
    memory: &'a Memory,
    ring: u64,
    size: u16,
}

impl Used<'_> {
    fn index(&self) -> u16 {
        self.memory.read_obj(GuestAddress(self.ring + 2)).unwrap()
    }

    fn set_index(&self, index: u16) {
        self.memory.store(index, GuestAddress(self.ring + 2), Ordering::Release).unwrap();
    }

    fn give_back(&self, buffer: u32, length: u32) {
        let index = self.index();
        let at = self.ring + 4 + 8 * u64::from(index % self.size);
        self.memory.write_obj(buffer, GuestAddress(at)).unwrap();
        self.memory.write_obj(length, GuestAddress(at + 4)).unwrap();
        self.set_index(index.wrapping_add(1));
    }

    /// Behind the elements: from which request on the driver is to tell.
    fn set_event_index(&self, index: u16) {
        let at = self.ring + 4 + 8 * u64::from(self.size);
        self.memory.write_obj(index, GuestAddress(at)).unwrap();
    }
}

impl VhostUserBackendMut for Device {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        RING.into()
    }

    fn features(&self) -> u64 {
        let ring = VIRTIO_RING_F_INDIRECT_DESC | VIRTIO_RING_F_EVENT_IDX | VIRTIO_F_VERSION_1;
        ring | VIRTIO_BLK_F_RO | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
    }

    fn set_event_idx(&mut self, _: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut config = (self.content.len() as u64 / SECTOR as u64).to_le_bytes().to_vec();
        config.resize((offset + size) as usize, 0);
        config.split_off(offset as usize)
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<Memory>) -> std::io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn handle_event(&mut self, _: u16, _: EventSet, queues: &[VringRwLock], _: usize) -> std::io::Result<()> {
        let memory = self.memory.as_ref().expect("the frontend gave it").memory();
        let mut state = queues[0].get_mut();
        let queue = state.get_queue_mut();
        let used = Used { memory: &memory, ring: queue.used_ring(), size: queue.size() };
        let table = GuestAddress(queue.desc_table());
        let mut chains = Vec::new();
        loop {
            if self.lie != Lie::EventIndex || !self.armed.load(Ordering::SeqCst) {
                used.set_event_index(queue.next_avail());
            }
            // What came before the driver could see that is there now.
            let more: Vec<_> = queue.iter(memory.clone()).map_err(std::io::Error::other)?.collect();
            if more.is_empty() {
                break;
            }
            chains.extend(more);
        }
        for chain in chains {
            let head = u32::from(chain.head_index());
            let buffers: Vec<_> = chain.collect();
            let [header, data @ .., status] = &buffers[..] else { panic!("{buffers:?}") };
            let kind: u32 = memory.read_obj(header.addr()).unwrap();
            let sector: u64 = memory.read_obj(GuestAddress(header.addr().0 + 8)).unwrap();
            let lie = if kind == READ && self.armed.load(Ordering::SeqCst) { self.lie } else { Lie::Honest };
            let mut from = match kind {
                READ => &self.content[sector as usize * SECTOR..],
                GET_ID => &self.serial[..],
                _ => &[],
            };
            let mut length = 1;
            for buffer in data.iter().filter(|_| lie != Lie::Nothing) {
                let part = from.split_off(..from.len().min(buffer.len() as usize)).expect("it is in range");
                memory.write_slice(part, buffer.addr()).unwrap();
                length += part.len() as u32;
            }
            memory.write_obj(if lie == Lie::Status { 0x77 } else { OK }, status.addr()).unwrap();
            match lie {
                Lie::Honest | Lie::Status | Lie::Nothing => used.give_back(head, length),
                Lie::UnknownBuffer => used.give_back(0xffff_0000 | head, length),
                Lie::BufferTwice => (0..2).for_each(|_| used.give_back(head, length)),
                Lie::Length => used.give_back(head, u32::MAX),
                Lie::Index => {
                    used.give_back(head, length);
                    used.set_index(used.index().wrapping_add(RING + 3));
                }
                Lie::Interrupts => {
                    for _ in 0..STORM {
                        state.signal_used_queue()?;
                    }
                    used.give_back(head, length);
                }
                Lie::Descriptors => {
                    // Of this request alone: from the others the device itself still has to read.
                    let at = GuestAddress(table.0 + 16 * u64::from(head));
                    memory.write_slice(&[0xff; 16], at).unwrap();
                    used.give_back(head, length);
                }
                Lie::EventIndex => {
                    used.set_event_index(used.index().wrapping_sub(0x4000));
                    used.give_back(head, length);
                }
                Lie::Gone => return Err(std::io::Error::other("gone")),
            }
        }
        state.signal_used_queue()
    }
}

/// Serves one connection to the device, until its other end goes away.
fn serve(device: Device, socket: &Path) {
    let mut listener = Listener::new(socket, true).unwrap();
    std::thread::spawn(move || {
        let memory = GuestMemoryAtomic::new(Memory::new());
        let mut daemon = VhostUserDaemon::new("disk".into(), Arc::new(Mutex::new(device)), memory).unwrap();
        daemon.start(&mut listener).unwrap();
        // It ends with QEMU, or by its own lie.
        let _ = daemon.wait();
    });
}

/// What a container read of its layer on a device that lied meanwhile: the file's beginning, the name of an error, or
/// nothing to this day.
fn read_from(lie: Lie) -> Option<String> {
    let stage = stage()?;
    let files: Vec<_> =
        (b'a'..=b'z').map(|letter| (format!("data/{}", letter as char), [letter; 64 << 10])).collect();
    let entries: Vec<_> =
        files.iter().map(|(name, content)| (EntryType::Regular, &**name, "", &content[..])).collect();
    let layout = stage.layout("python", "reader", &tar(&entries), |_| {});
    let other = stage.workload("busybox", &["echo", "honest"], GenerateOptions::default());
    let both = |policy: String| joined(&policy, &other.container.policy());
    let options = GenerateOptions::default();
    let all = stage.workload_of(&layout, "reader", &["python3", "-c", READER], options, both);
    let top = all.layers.len() - 1;
    let armed = Arc::new(AtomicBool::new(false));
    let mut serial = [0; 20];
    serial[..all.serial(top).len()].copy_from_slice(all.serial(top).as_bytes());
    let content = std::fs::read(&all.layers[top].path).unwrap();
    let socket = stage.file("disk", b"");
    serve(Device { content, serial, lie, armed: armed.clone(), memory: None }, &socket);

    let mut disks = all.disks();
    disks.truncate(top);
    disks.extend(other.disks());
    let mut config = stage.config(all.policy.host_data(), disks);
    let chardev = format!("socket,id=disk,path={}", socket.display());
    config.extra_args =
        arguments(&["-chardev", &chardev, "-device", "vhost-user-blk-pci,chardev=disk,num-queues=1,addr=10"]);
    let guest = stage.launch(&config);
    guest.accept(&all.policy.image);
    let process = guest.run(&all, &id('1'), Stdio { stdin: true, ..OUTPUT });
    let mut output = guest.attach(process, Stream::Stdout);
    let mut input = guest.attach(process, Stream::Stdin);
    read_until(&mut output, "ready\n");
    input.write_all(b"a\n").unwrap();
    assert_eq!(read_until(&mut output, "\n"), "aaaaaaaa\n", "it was honest so far");

    // Finding a disk asks every disk for its serial, and a host may always withhold an answer.
    guest.mount_layers(&other);
    armed.store(true, Ordering::SeqCst);
    input.write_all(b"z\n").unwrap();
    let answered = match lie {
        // The driver is out of step with such a device, and uses it no more.
        Lie::UnknownBuffer | Lie::BufferTwice | Lie::Index | Lie::EventIndex | Lie::Gone => None,
        _ => Some(read_until(&mut output, "\n")),
    };
    // The guest goes on, and so does what has nothing to do with the device.
    guest.mount_overlay(&other, &id('2'));
    let process = guest.create(&other, &id('2'), OUTPUT);
    assert_eq!(guest.finish(process), ("honest\n".into(), ExitStatus::Code(0)), "{}", guest.console());
    guest.done(Request::ShutdownContainer { container: &id('2') });
    let console = guest.console();
    for word in
        ["BUG:", "Oops", "UBSAN", "general protection", "Kernel panic", "refcount_t", "list_add corruption"]
    {
        assert!(!console.contains(word), "{lie:?}: {console}");
    }
    if answered.is_some() {
        return answered;
    }
    output.set_nonblocking(true).unwrap();
    let mut rest = String::new();
    // Its end is not awaited.
    let _ = output.read_to_string(&mut rest);
    Some(rest)
}

/// One lie: what the container may have read.
macro_rules! lies {
    ($($test:ident: $lie:ident => $read:pat,)*) => {$(
        #[test]
        fn $test() {
            let Some(read) = read_from(Lie::$lie) else { return };
            assert!(matches!(&read[..], $read), "{read:?}");
        }
    )*};
}

lies! {
    the_device_works_as_long_as_it_is_honest: Honest => "zzzzzzzz\n",
    b05_a_buffer_that_no_queue_has: UnknownBuffer => "",
    b05_a_buffer_returned_twice: BufferTwice => "" | "zzzzzzzz\n",
    b05_more_written_than_the_buffer_holds: Length => "zzzzzzzz\n" | "EIO\n",
    b05_more_buffers_returned_than_there_are: Index => "" | "zzzzzzzz\n",
    b05_interrupts_for_nothing: Interrupts => "zzzzzzzz\n",
    b05_descriptors_rewritten_under_way: Descriptors => "zzzzzzzz\n",
    b05_a_status_that_does_not_exist: Status => "EIO\n",
    b05_a_read_that_wrote_nothing: Nothing => "EIO\n",
    b05_any_event_index: EventIndex => "zzzzzzzz\n" | "",
    b05_a_device_that_goes_away: Gone => "",
}
