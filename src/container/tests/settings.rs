//! What a policy says that the guest gives a container or the pod.

use super::*;
use crate::filter::{ALLOW, ERRNO, Filter, Instruction, NUMBER};
use crate::gate::settings::{Hostname, LIMIT_NAMES, Limits, Sysctl};

/// Runs a command as a further process; its output and exit.
fn further(
    machine: &mut Machine,
    container: ContainerId,
    script: &str,
    spec: Spec<'_>,
) -> (String, ExitStatus) {
    let process = machine.exec(container, &Spec { args: &["sh", "-c", script], ..spec }).unwrap();
    machine.finish(process)
}

#[test]
fn nothing_can_be_written_to_a_read_only_root_but_to_what_is_mounted_on_it() {
    let test = "settings::nothing_can_be_written_to_a_read_only_root_but_to_what_is_mounted_on_it";
    alone(test, |machine| {
        let settings = Settings { read_only_root: true, ..Settings::default() };
        let spec = || Spec { dir: "/srv/made/here", settings: settings.clone(), ..Spec::new(&[]) };
        let script = "pwd; echo x > /x || echo refused; echo x > /srv/made/here/x || echo refused; \
            echo y > /dev/shm/y && cat /dev/shm/y; mount -o remount,rw / || echo stays; exec sleep 1000";
        machine.rootfs(&id('a'));
        machine.create(id('a'), &Spec { args: &["sh", "-c", script], ..spec() }).unwrap();
        let (text, status) = further(machine, id('a'), "touch /x", spec());
        assert!(text.contains("Read-only file system") && status == ExitStatus::Code(1), "{text}");
        machine.shutdown(id('a')).unwrap();
        let script = script.trim_end_matches("exec sleep 1000");
        let (text, _) = machine.script(id('b'), script, spec());
        assert!(text.starts_with("/srv/made/here\nrefused\nrefused\ny\nstays\n"), "{text}");
        // The twin: another container's root is its own.
        let (text, _) = machine.script(id('c'), "touch /x && echo written", Spec::new(&[]));
        assert_eq!(text, "written\n");
    });
}

#[test]
fn resource_limits_are_the_policys_for_every_process_and_the_usual_ones_otherwise() {
    let test = "settings::resource_limits_are_the_policys_for_every_process_and_the_usual_ones_otherwise";
    alone(test, |machine| {
        let mut limits = Limits::default();
        let at = |name| LIMIT_NAMES.iter().position(|&known| known == name).unwrap();
        limits.0[at("nofile")] = Some((Some(77), Some(88)));
        limits.0[at("core")] = Some((Some(0), None));
        limits.0[at("nproc")] = Some((Some(4000), Some(4000)));
        let settings = Settings { limits, ..Settings::default() };
        let spec = || Spec { settings: settings.clone(), ..Spec::new(&[]) };
        let script = "cat /proc/self/limits";
        let pick = |text: &str| -> Vec<String> {
            let rows = ["Max open files", "Max core file size", "Max processes", "Max locked memory"];
            let find =
                |row: &&str| text.lines().find_map(|line| line.strip_prefix(*row)).unwrap().to_string();
            let values = |line: String| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            rows.iter().map(find).map(values).collect()
        };
        machine.rootfs(&id('a'));
        machine.create(id('a'), &Spec { args: &["sleep", "1000"], ..spec() }).unwrap();
        let expected = ["77 88", "0 unlimited", "4000 4000", "8388608 8388608"];
        assert_eq!(pick(&further(machine, id('a'), script, Spec::new(&[])).0), expected);
        machine.shutdown(id('a')).unwrap();
        assert_eq!(pick(&machine.script(id('b'), script, spec()).0), expected);
        // A machine for tests may have less than the usual hard limits itself.
        let usual = pick(&machine.script(id('c'), script, Spec::new(&[])).0);
        assert!(usual[0].starts_with("1024 ") && usual[1] == "0 0" && usual[2] != expected[2], "{usual:?}");
    });
}

#[test]
fn host_name_and_sysctls_are_the_policys_and_the_init_keeps_its_own() {
    let test = "settings::host_name_and_sysctls_are_the_policys_and_the_init_keeps_its_own";
    alone(test, |machine| {
        let before = fs::read_to_string("/proc/sys/kernel/msgmax").unwrap();
        let sysctls = [("kernel.msgmax", "4321"), ("net.ipv4.ip_local_port_range", "20000 20100")];
        let sysctls = sysctls.iter().map(|(name, value)| Sysctl::parse(name, value).unwrap()).collect();
        let hostname = Some(Hostname::parse("web-0").unwrap());
        let pod = PodSettings { hostname, sysctls, resources: Resources::default() };
        let spec = || Spec { pod: pod.clone(), ..Spec::new(&[]) };
        let script =
            "hostname; cd /proc/sys; cat kernel/msgmax net/ipv4/ip_local_port_range; echo 5 > kernel/msgmax";
        for container in ['a', 'b'] {
            let (text, _) = machine.script(id(container), script, spec());
            assert!(text.starts_with("web-0\n4321\n20000\t20100\n") && text.contains("Read-only"), "{text}");
        }
        assert_eq!(fs::read_to_string("/proc/sys/kernel/msgmax").unwrap(), before);
        let sysctls = vec![Sysctl::parse("net.ipv4.no_such_setting", "1").unwrap()];
        machine.rootfs(&id('c'));
        let wrong = PodSettings { sysctls, ..PodSettings::default() };
        let refused = machine.create(id('c'), &Spec { args: &["true"], pod: wrong, ..Spec::new(&[]) });
        assert_eq!(refused, Err(error(Step::EnterNamespaces, Errno::NOENT)));
        assert!(machine.cgroups().is_empty());
    });
}

#[test]
fn c04_a_profile_holds_for_every_process_on_top_of_what_no_container_may() {
    let test = "settings::c04_a_profile_holds_for_every_process_on_top_of_what_no_container_may";
    alone(test, |machine| {
        // mkdir and mkdirat fail with EPERM; all else is allowed, also what the guest's own filter denies.
        let mut words: Vec<i64> = vec![Instruction::load(NUMBER).word()];
        for number in [83, 258] {
            words.push(Instruction::if_equal(number, 0, 1).word());
            words.push(Instruction::answer(ERRNO | 1).word());
        }
        words.push(Instruction::answer(ALLOW).word());
        let settings = Settings { filter: Filter::new(&words), ..Settings::default() };
        assert!(settings.filter.is_some());
        let script = "mkdir /x || echo refused; touch /y && echo made; \
            perl -e 'socket(my $s, 40, 1, 0); print $!+0, \"\\n\"'; grep Seccomp_filters /proc/self/status";
        let lines = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.contains("mkdir:")).map(ToString::to_string).collect()
        };
        let expected = ["refused", "made", "97", "Seccomp_filters:\t2"];
        for (container, no_new_privileges) in [('a', true), ('b', false)] {
            let spec = || Spec { no_new_privileges, settings: settings.clone(), ..Spec::new(&[]) };
            machine.rootfs(&id(container));
            machine.create(id(container), &Spec { args: &["sleep", "1000"], ..spec() }).unwrap();
            // The further process gets it although it is asked for with the usual settings.
            let plain = Spec { no_new_privileges, ..Spec::new(&[]) };
            let (text, _) = further(machine, id(container), script, plain);
            assert_eq!(lines(&text), expected, "{text}");
            machine.shutdown(id(container)).unwrap();
        }
        let (text, _) = machine.script(id('c'), script, Spec { settings, ..Spec::new(&[]) });
        assert_eq!(lines(&text), expected, "{text}");
        let (text, _) = machine.script(id('d'), script, Spec::new(&[]));
        assert_eq!(lines(&text), ["made", "97", "Seccomp_filters:\t1"], "{text}");
    });
}

#[test]
fn c15_limits_hold_or_are_refused() {
    alone("settings::c15_limits_hold_or_are_refused", |machine| {
        let (container, other) = (id('6'), id('7'));
        machine.rootfs(&container);
        machine.create(container, &Spec::new(&["sleep", "1000"])).unwrap();
        let limits = wire::Resources { processes: Some(7), ..wire::Resources::default() };
        // Where the machine has the old hierarchies there is nothing that could hold them.
        let group = Path::new(&machine.cgroup).join("parma").join(container.as_str());
        match fs::read_to_string(group.join("pids.max")) {
            Ok(before) => {
                assert_eq!(before, "8192\n");
                machine.update(container, limits).unwrap();
                assert_eq!(fs::read_to_string(group.join("pids.max")).unwrap(), "7\n");
            }
            Err(_) => assert_eq!(machine.update(container, limits).unwrap_err().step, Step::Cgroup),
        }
        assert_eq!(machine.update(other, limits).unwrap_err().step, Step::Cgroup, "it is not there");
        machine.shutdown(container).unwrap();
    });
}
