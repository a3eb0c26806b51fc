//! What a process in a container sees and may do.

use super::*;
use crate::gate::fields::{DirectoryName, MountPoint};
use crate::linux::process::{Scheduling, schedule};

#[test]
fn a_container_sees_itself_and_nothing_else() {
    alone("view::a_container_sees_itself_and_nothing_else", |machine| {
        let script = "echo pid $$; hostname; umask; pwd; id -u; id -G; grep 0:: /proc/self/cgroup; \
            echo procs /proc/[0-9]*; ls /dev /dev/pts; echo; cat /sys/class/net/lo/operstate; ls /sys/class/net; \
            ls -l /proc/self/fd | grep -c -- '->'; ulimit -n; ulimit -Hn; ulimit -c; \
            grep -E 'Cap|NoNewPrivs|Seccomp:|SigBlk|SigIgn' /proc/self/status; cat /proc/self/mountinfo";
        let (text, status) =
            machine.script(id('a'), script, Spec { dir: "/srv/made/here", ..Spec::new(&[]) });
        println!("{text}");
        assert_eq!(status, ExitStatus::Code(0));
        assert!(text.starts_with("pid 1\naaaaaaaaaaaa\n0027\n/srv/made/here\n0\n0\n0::/\n"));
        assert!(text.contains("procs /proc/1\n") || text.contains("procs /proc/1 "));
        assert!(text.contains("CapEff:\t00000000a80425fb") && text.contains("CapBnd:\t00000000a80425fb"));
        assert!(text.contains("CapInh:\t0000000000000000") && text.contains("CapAmb:\t0000000000000000"));
        assert!(text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"));
        assert!(text.contains("SigBlk:\t0000000000000000") && text.contains("SigIgn:\t0000000000000000"));
        // 0, 1, 2 and the directory that ls reads.
        assert!(text.contains("\nlo\n4\n1024\n"));
        let dev = "/dev:\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n";
        assert!(text.contains(dev) && text.contains("/dev/pts:\nptmx\n"));
        let mounts: Vec<&str> = text.lines().filter(|line| line.contains(" - ")).collect();
        assert!(!mounts.iter().any(|line| line.contains(BASE) && !line.contains("lowerdir=/")));
        assert!(mounts.iter().all(|line| !line.contains("shared:") && !line.contains("master:")));
        assert!(machine.cgroups().is_empty());
    });
}

#[test]
fn processes_are_scheduled_as_usual_though_the_init_waits_its_turn() {
    alone("view::processes_are_scheduled_as_usual_though_the_init_waits_its_turn", |machine| {
        // proc_pid_stat(5): field 41 is the scheduling policy.
        let policy = |stat: &str| stat.split(' ').nth(40).map(str::to_owned);
        schedule(Scheduling::Batch).unwrap();
        assert_eq!(policy(&fs::read_to_string("/proc/thread-self/stat").unwrap()).as_deref(), Some("3"));
        let (text, _) = machine.script(id('a'), "exec cat /proc/self/stat", Spec::new(&[]));
        assert_eq!(policy(&text).as_deref(), Some("0"), "{text}");
    });
}

#[test]
fn what_is_masked_is_empty_and_what_is_read_only_cannot_be_written() {
    alone("view::what_is_masked_is_empty_and_what_is_read_only_cannot_be_written", |machine| {
        let script = "cat /proc/kcore /proc/keys /proc/timer_list /proc/kmsg; ls -A /sys/firmware /proc/scsi; \
            for f in /proc/sys/kernel/domainname /proc/sysrq-trigger /sys/class/net/lo/mtu /sys/fs/cgroup/pids.max \
            /sys/fs/cgroup/cgroup.procs; do (echo 1 > $f) 2>/dev/null && echo wrote $f; done; \
            mknod /tmp/mem c 1 1 && echo made mem; mknod /tmp/sda b 8 0 && echo made sda; \
            mknod /tmp/null c 1 3 || echo null not made; (: < /tmp/null) || echo null not opened; \
            echo x > /dev/null && echo y > /dev/shm/y && cat /dev/shm/y; grep '/sys/firmware ' /proc/self/mountinfo";
        let spec = Spec { caps: caps(ALL), ..Spec::new(&[]) };
        let (text, _) = machine.script(id('b'), script, spec);
        println!("{text}");
        assert!(!text.contains("wrote") && !text.contains("made mem") && !text.contains("made sda"));
        // A listed device can be made, but the root filesystem is mounted without device nodes.
        assert!(!text.contains("null not made") && text.contains("null not opened"));
        assert!(text.contains("\ny\n") || text.starts_with("y\n") || text.contains("y\nmknod"));
        let covered = text.lines().any(|line| line.contains(" /sys/firmware ro,nosuid,nodev,noexec"));
        assert_eq!(covered, Path::new("/sys/firmware").is_dir());
    });
}

#[test]
fn t03_a_container_can_make_no_vsock_socket_and_the_honest_ones_work() {
    alone("view::t03_a_container_can_make_no_vsock_socket_and_the_honest_ones_work", |machine| {
        let script = "perl -e 'for my $f (1, 2, 10, 40) { $! = 0; \
            print \"$f \", (socket(my $s, $f, 1, 0) ? \"ok\" : $!+0), \"\\n\" }'";
        let spec = Spec { caps: caps(ALL), ..Spec::new(&[]) };
        let (text, status) = machine.script(id('c'), script, spec);
        assert_eq!((text.as_str(), status), ("1 ok\n2 ok\n10 ok\n40 97\n", ExitStatus::Code(0)));
    });
}

#[test]
fn c06_a_process_gets_exactly_the_user_groups_and_capabilities_decided_on() {
    alone("view::c06_a_process_gets_exactly_the_user_groups_and_capabilities_decided_on", |machine| {
        let net_bind = 1 << 10;
        let kept = Capabilities { inheritable: net_bind, ambient: net_bind, ..caps(net_bind) };
        let script =
            "id -u; id -g; id -G; grep -E 'Cap|NoNew' /proc/self/status; echo again > /dev/stdout; touch /x";
        let spec =
            Spec { uid: 1234, gids: &[7, 8, 9], caps: kept, no_new_privileges: false, ..Spec::new(&[]) };
        let (text, _) = machine.script(id('d'), script, spec);
        let set = "0000000000000400";
        let expected = format!(
            "1234\n7\n7 8 9\nCapInh:\t{set}\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\nCapAmb:\t{set}\n\
            NoNewPrivs:\t0\nagain\ntouch: cannot touch '/x': Permission denied\n"
        );
        assert_eq!(text, expected);
        let spec = Spec { uid: 1234, gids: &[7], caps: caps(DOCKER), ..Spec::new(&[]) };
        let (text, _) = machine.script(id('e'), "grep -E 'CapEff|CapPrm' /proc/self/status", spec);
        assert_eq!(text, "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n");
    });
}

/// CAP_SYS_ADMIN alone is left out: it lets a container unmount its root (docs/containers.md).
#[test]
fn c16_neither_chroot_nor_ptrace_nor_handles_lead_out_of_a_container() {
    alone("view::c16_neither_chroot_nor_ptrace_nor_handles_lead_out_of_a_container", |machine| {
        fs::write(Path::new(BASE).join("marker"), "").unwrap();
        let script = std::format!(
            r#"$| = 1;
            sub seen {{ print "$_[0] ", -e "{BASE}/marker" ? "outside" : "inside", "\n" }}
            sub tried {{ print "$_[0] ", $_[1] == -1 ? $! + 0 : "done", "\n" }}
            opendir my $root, "/"; mkdir "/x"; chroot "/x" or die;
            chdir ".." for 1 .. 64; chroot "."; -d "/x" or die; seen "chroot";
            chroot "/x"; chdir $root; chdir ".." for 1 .. 64; chroot "."; -d "/x" or die; seen "descriptor";
            for my $way ("/proc/1/root/..", "/proc/self/root/..", "/proc/1/cwd/..") {{
                chroot $way or die; seen $way;
            }}
            my ($init, $attach) = ({}, 16);
            tried "ptrace", syscall 101, $attach, $init, 0, 0;
            tried "pidfd", syscall 434, $init, 0;
            tried "signal", syscall 62, $init, 0;
            tried "handle", syscall 304, 0, 0, 0;
            my $child = fork; sleep 1000 unless $child;
            tried "own", syscall 101, $attach, $child, 0, 0;
            kill 9, $child;"#,
            process::id()
        );
        let args = ["perl", "-e", &script];
        machine.rootfs(&id('a'));
        let spec = Spec { caps: caps(ALL & !(1 << 21)), ..Spec::new(&args) };
        let process = machine.create(id('a'), &spec).unwrap();
        let expected = "chroot inside\ndescriptor inside\n/proc/1/root/.. inside\n/proc/self/root/.. inside\n\
            /proc/1/cwd/.. inside\nptrace 3\npidfd 3\nsignal 3\nhandle 1\nown done\n";
        assert_eq!(machine.finish(process), (expected.to_string(), ExitStatus::Code(0)));
        machine.shutdown(id('a')).unwrap();
    });
}

#[test]
fn i16_a_mount_target_that_is_a_link_is_refused() {
    alone("view::i16_a_mount_target_that_is_a_link_is_refused", |machine| {
        let outside = PathBuf::from(BASE).join("outside");
        fs::create_dir(&outside).unwrap();
        for (container, name) in [('0', "proc"), ('1', "sys"), ('2', "dev")] {
            let rootfs = machine.rootfs(&id(container));
            fs::remove_dir_all(rootfs.join(name)).unwrap();
            symlink(&outside, rootfs.join(name)).unwrap();
            let result = machine.create(id(container), &Spec::new(&["true"]));
            assert_eq!(result, Err(error(Step::Rootfs, Errno::NOTDIR)), "{name}");
            fs::remove_file(rootfs.join(name)).unwrap();
            // Missing is no attack.
            let process = machine.create(id(container), &Spec::new(&["true"])).unwrap();
            assert_eq!(machine.exit_of(process), ExitStatus::Code(0));
            machine.shutdown(id(container)).unwrap();
        }
        assert!(fs::read_dir(outside).unwrap().next().is_none());
    });
}

#[test]
fn i16_a_user_file_that_is_a_link_stays_inside_the_image() {
    alone("view::i16_a_user_file_that_is_a_link_stays_inside_the_image", |machine| {
        let container = id('3');
        let rootfs = machine.rootfs(&container);
        let secret = PathBuf::from(BASE).join("passwd");
        fs::write(&secret, "secret:x:5:5:::\n").unwrap();
        let passwd = rootfs.join("etc/passwd");
        let resolve = |machine: &Machine, name| {
            machine.containers.resolve_user(&container, UserSpec::parse(name).unwrap()).map(|user| user.uid)
        };
        assert_eq!(resolve(machine, "daemon"), Ok(1));
        for target in
            [secret.to_str().unwrap(), "../../../../../mnt/passwd", "/proc/1/root/mnt/passwd", "/nowhere"]
        {
            fs::remove_file(&passwd).unwrap();
            symlink(target, &passwd).unwrap();
            assert_eq!(resolve(machine, "secret"), Err(error(Step::ResolveUser, Errno::NOENT)), "{target}");
        }
        fs::remove_file(&passwd).unwrap();
        symlink("passwd.real", &passwd).unwrap();
        fs::write(rootfs.join("etc/passwd.real"), "inside:x:6:6:::\n").unwrap();
        assert_eq!(resolve(machine, "inside"), Ok(6));
        fs::remove_file(&passwd).unwrap();
        assert!(process::Command::new("mkfifo").arg(&passwd).status().unwrap().success());
        assert_eq!(resolve(machine, "inside"), Err(error(Step::ResolveUser, Errno::INVAL)));
        fs::remove_file(&passwd).unwrap();
        fs::write(&passwd, [b'\n'; (1 << 20) + 1]).unwrap();
        assert_eq!(resolve(machine, "0"), Err(error(Step::ResolveUser, Errno::FBIG)));
    });
}

#[test]
fn containers_of_a_guest_share_network_queues_and_host_name_and_nothing_else() {
    alone("view::containers_of_a_guest_share_network_queues_and_host_name_and_nothing_else", |machine| {
        let script = "hostname; for ns in net ipc uts mnt pid cgroup; do readlink /proc/self/ns/$ns; done; \
            cat /sys/class/net/lo/flags; echo $$";
        // Both are there at the same time, since a namespace's number can be used again.
        let processes = ['a', 'b'].map(|container| {
            machine.rootfs(&id(container));
            let waiting = std::format!("{script}; cat");
            let args = ["sh", "-c", &waiting];
            let spec = Spec { stdin: true, ..Spec::new(&args) };
            machine.create(id(container), &spec).unwrap()
        });
        for process in processes {
            drop(machine.attach(process, Stream::Stdin));
        }
        let seen = processes
            .map(|process| machine.finish(process).0.lines().map(str::to_string).collect::<Vec<_>>());
        let [first, second] = &seen;
        assert_eq!((first[0].as_str(), &first[..4]), ("aaaaaaaaaaaa", &second[..4]));
        for namespace in 4..7 {
            assert_ne!(first[namespace], second[namespace]);
        }
        // IFF_UP is 1; each first process is number 1 of its own.
        assert_eq!((first[7].as_str(), first[8].as_str()), ("0x9", "1"));
        assert_eq!(first[7..], second[7..]);
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_ne!(own.to_str(), Some(first[1].as_str()), "the init is not in the pod's network");
        for container in ['a', 'b'] {
            machine.shutdown(id(container)).unwrap();
        }
    });
}

#[test]
fn c05_a_directory_that_is_shared_holds_no_devices_and_no_setuid_programs_and_is_read_only_where_that_is_said()
 {
    const TEST: &str = "view::c05_a_directory_that_is_shared_holds_no_devices_and_no_setuid_programs_\
        and_is_read_only_where_that_is_said";
    alone(TEST, |machine| {
        let container = id('a');
        machine.rootfs(&container);
        mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
        let directories = crate::gate::input::DIRECTORIES;
        fs::create_dir_all(format!("/run/gcs/c/{}/{directories}", container.as_str())).unwrap();
        let bound = |read_only| Mount {
            source: Source::Directory(DirectoryName::parse("shared").unwrap()),
            destination: MountPoint::parse(if read_only { "/mnt/read" } else { "/mnt/write" }).unwrap(),
            read_only,
        };
        let script = "echo text > /mnt/write/file; cat /mnt/read/file; (echo x > /mnt/read/file) 2>/dev/null || echo no; \
            stat -c %a /mnt/read; grep -oE '/mnt/(read|write) r[ow],nosuid,nodev' /proc/self/mountinfo";
        let args = ["sh", "-c", script];
        let process =
            machine.create_with(container, std::vec![bound(false), bound(true)], &Spec::new(&args)).unwrap();
        let (text, _) = machine.finish(process);
        assert_eq!(text, "text\nno\n777\n/mnt/write rw,nosuid,nodev\n/mnt/read ro,nosuid,nodev\n");
        machine.shutdown(container).unwrap();
    });
}
