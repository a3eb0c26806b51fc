//! Containers that share a namespace of processes.

use super::*;

/// What a policy says of those that do.
fn sharing() -> Settings {
    Settings { share_process_namespace: true, ..Settings::default() }
}

fn spec<'a>(args: &'a [&'a str]) -> Spec<'a> {
    Spec { settings: sharing(), ..Spec::new(args) }
}

impl Machine {
    fn start(&mut self, container: ContainerId, spec: &Spec<'_>) -> ProcessId {
        self.rootfs(&container);
        self.create(container, spec).unwrap()
    }

    /// What a further process of a container says.
    fn says(&mut self, container: ContainerId, script: &str) -> String {
        let process = self.exec(container, &Spec::new(&["sh", "-c", script])).unwrap();
        self.finish(process).0
    }

    /// Whether nothing is left of any container, nor of what holds their namespace.
    fn is_clean(&self) -> bool {
        self.cgroups().is_empty()
            && self.containers.holder.is_none()
            && !Path::new(BASE).join("c/holder").exists()
            && wait_any(WaitOptions::NOHANG).is_err_and(|errno| errno == Errno::CHILD)
    }
}

/// Which of the processes `sleep 1001`, `sleep 1002` and so on are to be seen.
const SLEEPERS: &str = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o 'sleep 100[0-9]' | sort";

#[test]
fn containers_that_share_processes_see_each_other_and_no_other_sees_them() {
    let test = "shared::containers_that_share_processes_see_each_other_and_no_other_sees_them";
    alone(test, |machine| {
        let (a, b, c, d) = (id('a'), id('b'), id('c'), id('d'));
        machine.start(a, &spec(&["sleep", "1001"]));
        machine.start(b, &spec(&["sleep", "1002"]));
        machine.start(c, &Spec::new(&["sleep", "1003"]));
        machine.start(d, &Spec::new(&["sleep", "1004"]));
        for container in [a, b] {
            assert_eq!(machine.says(container, SLEEPERS), "sleep 1001\nsleep 1002\n");
        }
        assert_eq!(machine.says(c, SLEEPERS), "sleep 1003\n");
        assert_eq!(machine.says(d, SLEEPERS), "sleep 1004\n");
        let namespaces = |machine: &mut Machine, container| {
            machine.says(container, "for ns in pid mnt cgroup; do readlink /proc/self/ns/$ns; done")
        };
        let seen = [a, b, c, d].map(|container| namespaces(machine, container));
        let part = |at: usize, namespace| seen[at].lines().nth(namespace).unwrap();
        assert_eq!(part(0, 0), part(1, 0));
        for (one, other, namespace) in
            [(0, 2, 0), (0, 3, 0), (2, 3, 0), (0, 1, 1), (0, 1, 2), (0, 2, 1), (0, 2, 2)]
        {
            assert_ne!(part(one, namespace), part(other, namespace));
        }
        for container in [a, b, c, d] {
            machine.shutdown(container).unwrap();
        }
        assert!(machine.is_clean());
    });
}

#[test]
fn a_container_that_shares_processes_ends_with_its_first_one_and_no_other_with_it() {
    let test = "shared::a_container_that_shares_processes_ends_with_its_first_one_and_no_other_with_it";
    alone(test, |machine| {
        let (a, b) = (id('a'), id('b'));
        let script = "(setsid sleep 1001 &); exec sleep 1002";
        let first = machine.start(a, &spec(&["sh", "-c", script]));
        let further = machine.exec(a, &Spec::new(&["sleep", "1003"])).unwrap();
        let other = machine.start(b, &spec(&["sleep", "1004"]));
        machine.signal(first, 15).unwrap();
        assert_eq!(machine.exit_of(first), ExitStatus::Signal(15));
        assert_eq!(machine.exit_of(further), ExitStatus::Signal(9));
        let late = machine.exec(a, &Spec::new(&["true"]));
        assert_eq!(late, Err(error(Step::EnterNamespaces, Errno::SRCH)));
        machine.shutdown(a).unwrap();
        assert_eq!(machine.says(b, SLEEPERS), "sleep 1004\n");
        // It can be created anew, in the same namespace.
        machine.create(a, &spec(&["sleep", "1005"])).unwrap();
        assert_eq!(machine.says(b, SLEEPERS), "sleep 1004\nsleep 1005\n");
        machine.shutdown(b).unwrap();
        assert_eq!(machine.exit_of(other), ExitStatus::Signal(9));
        assert_eq!(machine.says(a, SLEEPERS), "sleep 1005\n");
        machine.shutdown(a).unwrap();
        assert!(machine.is_clean());
    });
}

#[test]
fn a_process_whose_parent_ended_leaves_no_zombie_where_processes_are_shared() {
    let test = "shared::a_process_whose_parent_ended_leaves_no_zombie_where_processes_are_shared";
    alone(test, |machine| {
        // The orphan waits for its standard input; its parent has ended when the pipe is read to the end.
        let script = "mkfifo /f; orphan=$(sh -c 'sh -c \"read line < /f\" >&- & echo $!'); \
            until grep -q '^PPid:.1$' /proc/$orphan/status || [ ! -e /proc/$orphan ]; do :; done; echo orphan; echo > /f; \
            while [ -e /proc/$orphan ]; do :; done; echo gone";
        let (text, status) = machine.script(id('a'), script, spec(&[]));
        assert_eq!((text.as_str(), status), ("orphan\ngone\n", ExitStatus::Code(0)));
        assert!(machine.is_clean());
    });
}

#[test]
fn a_container_that_cannot_start_among_shared_processes_leaves_nothing_behind() {
    let test = "shared::a_container_that_cannot_start_among_shared_processes_leaves_nothing_behind";
    alone(test, |machine| {
        machine.rootfs(&id('a'));
        let missing = machine.create(id('a'), &spec(&["no-such-program"]));
        assert_eq!(missing, Err(error(Step::Execute, Errno::NOENT)));
        assert!(machine.is_clean());
        machine.start(id('b'), &spec(&["sleep", "1001"]));
        let missing = machine.create(id('a'), &spec(&["no-such-program"]));
        assert_eq!(missing, Err(error(Step::Execute, Errno::NOENT)));
        assert_eq!(machine.says(id('b'), SLEEPERS), "sleep 1001\n");
        machine.shutdown(id('b')).unwrap();
        assert!(machine.is_clean());
    });
}

/// Containers see it, so it is what they attack.
#[test]
fn what_holds_shared_processes_cannot_be_ended_from_inside_and_has_nothing_to_take() {
    let test = "shared::what_holds_shared_processes_cannot_be_ended_from_inside_and_has_nothing_to_take";
    alone(test, |machine| {
        let secret = machine.containers.secrets[0].start;
        let script = std::format!(
            "ls -A /proc/1/root/ /proc/1/cwd/; readlink /proc/1/fd/* | sed 's/:.*//' | sort -u; \
            cut -d' ' -f5 /proc/1/mountinfo; grep -E '^(Uid|Groups|Cap...|NoNewPrivs|Seccomp_filters)' /proc/1/status; \
            perl -e 'open my $m, \"<:raw\", \"/proc/1/mem\" or die; sysseek $m, {secret}, 0; sysread $m, my $s, 16; \
            print unpack(\"H*\", $s), \"\\n\"'; \
            for ns in net ipc uts pid; do \
            [ $(readlink /proc/1/ns/$ns) = $(readlink /proc/self/ns/$ns) ] && echo own $ns; done; \
            for signal in 9 15 19 2; do kill -$signal 1; done; sed -n 's/^State:.//p' /proc/1/status"
        );
        let (text, _) = machine.script(id('a'), &script, Spec { caps: caps(ALL), ..spec(&[]) });
        let none = "0000000000000000";
        let expected = std::format!(
            "/proc/1/cwd/:\n\n/proc/1/root/:\npipe\n/\nUid:\t65534\t65534\t65534\t65534\nGroups:\t65534 \n\
            CapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapBnd:\t{none}\nCapAmb:\t{none}\nNoNewPrivs:\t1\n\
            Seccomp_filters:\t2\n{none}{none}\nown net\nown ipc\nown uts\nown pid\nS (sleeping)\n"
        );
        assert_eq!(text, expected);
        // Without CAP_SYS_PTRACE nothing of that can even be looked at.
        let script = "for of in root cwd fd/0 exe ns/net; do readlink /proc/1/$of || echo not $of; done; cat /proc/1/mem";
        let (text, _) = machine.script(id('b'), script, spec(&[]));
        assert!(text.starts_with("not root\nnot cwd\nnot fd/0\nnot exe\nnot ns/net\n"), "{text}");
        assert!(text.contains("/proc/1/mem: Permission denied"), "{text}");
        assert!(machine.is_clean());
    });
}

/// As in `life`, for what a neighbour can do.
#[test]
fn a_container_that_joins_shared_processes_brings_nothing_that_the_others_could_take_from_it() {
    let test =
        "shared::a_container_that_joins_shared_processes_brings_nothing_that_the_others_could_take_from_it";
    alone(test, |machine| {
        let script = catcher(machine);
        let args = ["perl", "-e", &script];
        let catcher = machine.start(id('a'), &Spec { caps: caps(ALL), ..spec(&args) });
        let seen = machine.attach(catcher, Stream::Stdout);
        machine.rootfs(&id('b'));
        catch(seen, machine, |machine| {
            let process = machine.create(id('b'), &Spec { settings: sharing(), ..slow(&["true"]) }).unwrap();
            assert_eq!(machine.exit_of(process), ExitStatus::Code(0));
            machine.shutdown(id('b')).unwrap();
        });
        machine.shutdown(id('a')).unwrap();
    });
}

#[test]
fn shared_processes_end_with_what_holds_them_and_come_again_when_all_are_shut_down() {
    let test = "shared::shared_processes_end_with_what_holds_them_and_come_again_when_all_are_shut_down";
    alone(test, |machine| {
        let a = machine.start(id('a'), &spec(&["sleep", "1001"]));
        let b = machine.start(id('b'), &spec(&["sleep", "1002"]));
        let holder = machine.containers.holder.as_ref().unwrap().processes().unwrap().0;
        send_signal(holder.as_fd(), 9).unwrap();
        assert_eq!(machine.exit_of(a), ExitStatus::Signal(9));
        assert_eq!(machine.exit_of(b), ExitStatus::Signal(9));
        machine.shutdown(id('a')).unwrap();
        // Nobody joins what is not there any more, and nobody is alone instead.
        machine.rootfs(&id('c'));
        let refused = machine.create(id('c'), &spec(&["true"])).map_err(|error| (error.step, error.undone));
        assert_eq!(refused, Err((Step::EnterNamespaces, true)));
        machine.shutdown(id('b')).unwrap();
        assert!(machine.is_clean());
        let (text, _) = machine.script(id('c'), SLEEPERS, spec(&[]));
        assert_eq!(text, "");
        assert!(machine.is_clean());
    });
}
