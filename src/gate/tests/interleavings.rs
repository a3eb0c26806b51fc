//! I07: two hosts ask at once, one honestly, the other to have a container assembled from something else than was decided.
//!
//! The guest serves one request after another, whoever sent it, so what two hosts can reach is what the interleavings of
//! their requests reach. All of them are tried. A kernel that is told only what was done, not why, says whether a container
//! ever stands on layers that it was not assembled from.

use super::*;

/// What is mounted, as the kernel would know it.
#[derive(Default)]
struct Kernel {
    /// Slot to the serial of the device there.
    mounted: BTreeMap<u16, String>,
    /// Container to the slots of its layers, and their devices when it was assembled.
    overlays: BTreeMap<String, Vec<(u16, String)>>,
    running: BTreeSet<String>,
}

impl Kernel {
    /// Takes in an action as [`Recorder`] writes it down.
    fn acts(&mut self, action: &str) {
        let words: Vec<&str> = action.split_whitespace().collect();
        let slot = |path: &str| path.rsplit_once('m').unwrap().1.parse::<u16>().unwrap();
        match words[..] {
            ["mount", device, "at", path] => {
                assert_eq!(self.mounted.insert(slot(path), device.into()), None, "over another mount");
            }
            ["unmount", path] => {
                let slot = slot(path);
                let under = self.overlays.values().flatten().any(|(layer, _)| *layer == slot);
                assert!(!under, "unmounted from under an overlay");
                assert!(self.mounted.remove(&slot).is_some(), "nothing is mounted there");
            }
            ["overlay", container, ..] => {
                let (_, list) = action.split_once('[').unwrap();
                let slots = list.trim_end_matches(']').split(", ").map(|slot| slot.parse().unwrap());
                let layers = slots.map(|slot: u16| (slot, self.mounted[&slot].clone())).collect();
                assert_eq!(self.overlays.insert(container.into(), layers), None, "over another overlay");
            }
            ["unoverlay", container] => {
                assert!(!self.running.contains(container), "taken apart while it runs");
                assert!(self.overlays.remove(container).is_some());
            }
            ["create", container, ..] => {
                let layers = &self.overlays[container];
                for (slot, device) in layers {
                    assert_eq!(self.mounted.get(slot), Some(device), "another layer than was decided on");
                }
                assert!(self.running.insert(container.into()), "created twice");
            }
            ["exec", container, ..] => assert!(self.running.contains(container), "executed in nothing"),
            ["shutdown", container] => assert!(self.running.remove(container), "nothing runs there"),
            _ => panic!("{action}"),
        }
    }
}

/// Every way to merge so many requests of the first with so many of the second; `true` is the second's turn.
fn interleavings(first: usize, second: usize) -> impl Iterator<Item = Vec<bool>> {
    let length = first + second;
    (0u32..1 << length)
        .filter(move |turns| turns.count_ones() as usize == second)
        .map(move |turns| (0..length).map(|at| turns >> at & 1 == 1).collect())
}

#[test]
fn i07_no_interleaving_of_two_hosts_puts_a_container_on_other_layers() {
    let (one, two) = (id('1'), id('2'));
    let overlay = |container, layers: &[&'static str]| Request::MountOverlay {
        container,
        layers: list(layers),
        scratch: None,
    };
    let create = |container| Request::CreateContainer {
        container,
        privileged: false,
        mounts: List::new(),
        seccomp: None,
        process: process(&["/bin/a"]),
    };
    let honest = [
        mount("a"),
        mount("b"),
        overlay(&one, &["b", "a"]),
        create(&one),
        Request::ExecInContainer { container: &one, process: process(&["/bin/b"]) },
        Request::ShutdownContainer { container: &one },
        Request::UnmountOverlay { container: &one },
        Request::UnmountDevice { device: "b" },
    ];
    let evil = [
        mount("c"),
        Request::UnmountDevice { device: "a" },
        Request::UnmountDevice { device: "b" },
        mount("b"),
        overlay(&one, &["c", "b"]),
        Request::UnmountOverlay { container: &one },
        overlay(&two, &["b", "c"]),
        create(&two),
    ];
    let lengths = (honest.len(), evil.len());
    let image = allowing(Point::ALL);
    let (mut tried, mut ran, mut undisturbed) = (0, 0, 0);
    for turns in interleavings(lengths.0, lengths.1) {
        let (mut gate, mut actor, mut kernel) = (gate_with(&image), Recorder::default(), Kernel::default());
        let (mut honest, mut evil) = (honest.iter(), evil.iter());
        let mut honestly_done = 0;
        for second in turns {
            let request = if second { evil.next() } else { honest.next() }.unwrap();
            let before = actor.done.len();
            let accepted = gate.handle(&mut actor, request).is_ok();
            assert_eq!(actor.done.len() - before, usize::from(accepted), "acted exactly when accepted");
            actor.done[before..].iter().for_each(|action| kernel.acts(action));
            honestly_done += usize::from(accepted && !second);
        }
        let devices: BTreeSet<&str> =
            gate.objects.devices.iter().map(|device| device.serial.as_str()).collect();
        assert_eq!(devices, kernel.mounted.values().map(String::as_str).collect());
        assert_eq!(gate.objects.overlays.len(), kernel.overlays.len());
        tried += 1;
        ran += usize::from(actor.done.iter().any(|action| action.starts_with("create 1111")));
        undisturbed += usize::from(honestly_done == lengths.0);
    }
    assert_eq!(tried, 12_870, "16 over 8");
    // The twin: the honest host is served whole where the other does not come between, and often where it does.
    assert!(undisturbed > 0 && ran > tried / 10, "{undisturbed} whole, {ran} with the container");
}
