//! The firmware's plan for an SNP guest's memory, on the model of the processor's own table, for any machine.

use parma_firmware::accept::{Error, Platform, Validation, accept, change_small, ranges, validate};
use parma_firmware::e820::Map;
use parma_firmware::ghcb::{MAX_PAGES, Page, Size, State};
use parma_firmware::rom::{SECTIONS, SHARED_SIZE, WINDOW, WINDOW_SIZE};
use parma_snp::{Host, Rmp, Violation};
use proptest::prelude::*;

const PAGE: u64 = 0x1000;
const MIB: u64 = 1 << 20;
const FOUR_GIB: u64 = 1 << 32;

/// The table, and the first rule that was broken.
struct Model {
    rmp: Rmp,
    broken: Option<Violation>,
}

impl Platform for Model {
    fn change(&mut self, pages: &[Page], to: State) -> Result<(), Error> {
        assert!(!pages.is_empty() && pages.len() <= MAX_PAGES);
        for page in pages {
            if let Err(violation) = self.rmp.change(*page, to) {
                self.broken.get_or_insert(violation);
                return Err(Error::Denied);
            }
        }
        Ok(())
    }

    fn validate(&mut self, page: Page) -> Validation {
        self.rmp.validate(page).unwrap_or_else(|violation| {
            self.broken.get_or_insert(violation);
            Validation::Failed
        })
    }
}

/// A machine: where its RAM is, and whether its host has small pages only.
#[derive(Clone, Debug)]
struct Machine {
    ram: Vec<(u64, u64)>,
    small_pages: bool,
}

fn machine() -> impl Strategy<Value = Machine> {
    let above = proptest::collection::vec((1u64..1500, 1u64..1500), 0..4);
    (0u64..5000, above, any::<bool>()).prop_map(|(more, above, small_pages)| {
        let mut ram = vec![(0, 64 * MIB + more * PAGE)];
        let mut start = FOUR_GIB;
        for (gap, size) in above {
            start += gap * PAGE;
            ram.push((start, start + size * PAGE));
            start += size * PAGE;
        }
        Machine { ram, small_pages }
    })
}

impl Machine {
    fn launch(&self) -> (Model, Map) {
        let mut rmp = Rmp::new(self.small_pages);
        self.ram.iter().for_each(|(start, end)| rmp.add(*start, *end));
        for section in SECTIONS {
            rmp.launch(section.address.into(), u64::from(section.address) + u64::from(section.size));
        }
        let entries: Vec<_> = self.ram.iter().map(|(start, end)| (*start, end - start, 1)).collect();
        (Model { rmp, broken: None }, Map::new(&Host::e820(&entries)).unwrap())
    }
}

/// What the firmware does with memory, from its first exit to the start of Linux.
fn boot(model: &mut Model, map: &Map) -> Result<(), Error> {
    change_small(model, WINDOW, WINDOW + SHARED_SIZE, State::Shared)?;
    for (start, end) in ranges(map) {
        accept(model, start, end)?;
    }
    change_small(model, WINDOW, WINDOW + WINDOW_SIZE, State::Private)?;
    validate(model, Page { address: WINDOW, size: Size::Large })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_page_of_ram_is_validated_once_and_no_other(machine in machine()) {
        let (mut model, map) = machine.launch();
        prop_assert_eq!(boot(&mut model, &map), Ok(()));
        prop_assert_eq!(&model.broken, &None);
        let mut pages = 0;
        for (start, end) in &machine.ram {
            pages += (end - start) / PAGE;
        }
        model.rmp.check_once(0, 0xa_0000).unwrap();
        model.rmp.check_once(0x10_0000, machine.ram[0].1).unwrap();
        for (start, end) in &machine.ram[1..] {
            model.rmp.check_once(*start, *end).unwrap();
        }
        // All but the hole below 1 MiB, which is the devices'.
        prop_assert_eq!(model.rmp.valid() as u64, pages - 0x60);
    }

    #[test]
    fn a_page_that_is_valid_before_is_found_wherever_it_is(machine in machine(), seed: u64) {
        let (mut model, map) = machine.launch();
        let (start, end) = machine.ram[(seed % machine.ram.len() as u64) as usize];
        let page = start + (seed / 7) % ((end - start) / PAGE) * PAGE;
        let launched = (0x1_0000..0x8_2000).contains(&page);
        let hole = (0xa_0000..0x10_0000).contains(&page);
        let shared = (WINDOW..WINDOW + SHARED_SIZE).contains(&page);
        prop_assume!(!launched && !hole && !shared);
        model.rmp.launch(page, page + PAGE);
        prop_assert_eq!(boot(&mut model, &map), Err(Error::AlreadyValid));
    }

    #[test]
    fn memory_that_only_the_map_has_is_not_taken(machine in machine(), more in 1u64..600) {
        let (mut model, _) = machine.launch();
        let mut lie = machine.clone();
        lie.ram.last_mut().unwrap().1 += more * PAGE;
        let (_, map) = lie.launch();
        prop_assert_eq!(boot(&mut model, &map), Err(Error::Denied));
    }
}
