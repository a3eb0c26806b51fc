//! Fragments at the gate: header → decision → content → decision → permit → in force.
//!
//! Nothing of the content is looked at before the signature was verified and the policy welcomed issuer, feed and SVN
//! (attack F02). A fragment that is refused at any step leaves nothing behind; one that is loaded with several sets of
//! parameters is loaded with all of them or not at all.

use super::action::{LoadFragment, Permit};
use super::{Gate, limit, memory, no_value, refuse};
use crate::fragment::{self, CONTENT_TYPE, Problem};
use crate::point::Point;
use crate::policy::fragment::Fragment;
use crate::policy::{Arena, Pinned, Pinning, Undo, Value};
use crate::wire::{Culprit, Field, MAX_POLICY, Reason, Refusal, Step};
use alloc::string::String;
use alloc::vec::Vec;
use sha2::{Digest, Sha256};

/// Most fragments from start to power-off.
pub const MAX_FRAGMENTS: usize = 32;
/// Most sets of parameters of one fragment.
pub const MAX_PARAMETERS: usize = 16;

/// A fragment in force.
#[derive(Debug)]
struct Loaded {
    issuer: String,
    feed: String,
    svn: u32,
    digest: [u8; 32],
}

/// The fragments in force.
#[derive(Debug, Default)]
pub(super) struct Fragments(Vec<Loaded>);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { culprit: Culprit::Host, reason: Reason::Fragment { problem } }
    }
}

fn out_of_memory<T>() -> Result<T, Refusal> {
    refuse(Culprit::Guest, Reason::Failed { step: Step::Memory, errno: 0 })
}

impl Gate {
    pub(super) fn load_fragment(&mut self, envelope: &[u8]) -> Result<(), Refusal> {
        let signed = fragment::verify(envelope)?;
        if signed.content_type != CONTENT_TYPE {
            return Err(Problem::ContentType.into());
        }
        let svn = signed.svn.ok_or(Problem::Svn)?;
        let digest = Sha256::digest(envelope).into();
        for loaded in &self.fragments.0 {
            if loaded.digest == digest {
                return refuse(Culprit::Host, Reason::InUse { field: Field::Fragment });
            }
            // SECURITY (F03): within a boot a feed only goes forward.
            if loaded.issuer == signed.issuer && loaded.feed == signed.feed && svn < loaded.svn {
                return Err(Problem::Rollback.into());
            }
        }
        if self.fragments.0.len() >= MAX_FRAGMENTS || self.fragments.0.try_reserve(1).is_err() {
            return limit(Field::Fragment);
        }
        let loaded =
            Loaded { issuer: memory::text(signed.issuer)?, feed: memory::text(signed.feed)?, svn, digest };

        let ask = |content: Option<Value>| {
            move |input: &mut Arena<'_>| {
                super::input::load_fragment(input, signed.issuer, signed.feed, svn, content)
            }
        };
        let welcome = self.decide(Point::LoadFragment, &no_value, &ask(None))?;
        if !welcome.delta.is_empty() {
            // A policy's own rule that remembers something at this step would be remembering an intention.
            return refuse(Culprit::Policy, Reason::PolicyInvalid);
        }
        let parameters = self.keep_parameters(welcome.parameters)?;
        let result = self.load_content(signed.payload, &parameters, &ask);
        if let Some((parameters, _)) = parameters {
            self.forget(parameters);
        }
        result?;
        self.fragments.0.push(loaded);
        Ok(())
    }

    /// Puts the sets of parameters that the policy gives where they outlive the arena.
    fn keep_parameters(&mut self, list: Option<Value>) -> Result<Option<(Pinned, usize)>, Refusal> {
        let Some(Value::Array(sets)) =
            list.filter(|list| !matches!(list, Value::Array(sets) if sets.is_empty()))
        else {
            return Ok(None);
        };
        if sets.len() > MAX_PARAMETERS {
            return limit(Field::Fragment);
        }
        let Some(engine) = &mut self.engine else { return out_of_memory() };
        let mut kept = Pinning::default();
        let view = engine.view_of(&self.arena);
        for index in 0..sets.len() {
            if kept.field(&view, Value::int(index as i64), view.item(sets, index)).is_err() {
                return limit(Field::Fragment);
            }
        }
        match engine.pin(kept) {
            Ok(kept) => Ok(Some((kept, sets.len()))),
            Err(_) => limit(Field::Fragment),
        }
    }

    fn forget(&mut self, pinned: Pinned) {
        if let Some(engine) = &mut self.engine {
            engine.unpin(pinned);
        }
    }

    /// Works the content out for each set of parameters (once if there is none), asks about each, and puts all in force.
    fn load_content<I>(
        &mut self,
        payload: &[u8],
        parameters: &Option<(Pinned, usize)>,
        ask: &impl Fn(Option<Value>) -> I,
    ) -> Result<(), Refusal>
    where
        I: Fn(&mut Arena<'_>) -> Result<Value, crate::policy::Fault>,
    {
        if payload.len() > MAX_POLICY {
            return Err(Problem::Payload.into());
        }
        let mut image = memory::room(payload.len())?;
        image.extend_from_slice(payload);
        let mut steps = heapless::Vec::<(Undo, Pinned), MAX_PARAMETERS>::new();
        let count = parameters.as_ref().map_or(1, |(_, count)| *count);
        let loaded = (0..count).try_for_each(|index| {
            let parameters = parameters.as_ref().map(|(parameters, _)| (parameters, index));
            let step = self.load_once(&image, parameters, ask)?;
            steps.push(step).or_else(|_| limit(Field::Fragment))
        });
        let loaded =
            loaded.and_then(|()| self.put_in_force(Permit::granted(LoadFragment { image: &image }), &steps));
        if loaded.is_err() {
            while let Some((undo, pinned)) = steps.pop() {
                let undone = self.engine.as_mut().is_some_and(|engine| engine.rollback(undo).is_ok());
                // SECURITY (I08): what a failed undo leaves behind may refer to the data.
                if !undone {
                    self.phase = crate::wire::Phase::Poisoned;
                    return refuse(Culprit::Guest, Reason::Poisoned);
                }
                self.forget(pinned);
            }
        }
        loaded
    }

    /// Works the content out, asks the policy about it, and commits what it says.
    fn load_once<I>(
        &mut self,
        image: &[u8],
        parameters: Option<(&Pinned, usize)>,
        ask: &impl Fn(Option<Value>) -> I,
    ) -> Result<(Undo, Pinned), Refusal>
    where
        I: Fn(&mut Arena<'_>) -> Result<Value, crate::policy::Fault>,
    {
        let Some(engine) = &mut self.engine else { return out_of_memory() };
        let mut content = Fragment::read(image).map_err(|_| Problem::Payload)?;
        let arena = &mut Arena::new(&mut self.arena);
        let view = engine.view_of(&[]);
        let parameters = parameters.and_then(|(sets, index)| match engine.pinned(sets) {
            Value::Object(sets) => Some((&view, view.pair(sets, index).1)),
            _ => None,
        });
        let content = content.content(arena, parameters).map_err(|_| Problem::Payload)?;
        let Ok(pinned) = engine.pin(content) else { return limit(Field::Fragment) };
        let content = engine.pinned(&pinned);
        let decided = self.decide(Point::LoadFragment, &no_value, &ask(Some(content)));
        let committed = decided.and_then(|decision| match &mut self.engine {
            Some(engine) => engine.commit(decision.delta).or_else(|_| out_of_memory()),
            None => out_of_memory(),
        });
        match committed {
            Ok(undo) => Ok((undo, pinned)),
            Err(refusal) => {
                self.forget(pinned);
                Err(refusal)
            }
        }
    }

    /// From here on the fragment's patterns can be matched.
    fn put_in_force(
        &mut self,
        permit: Permit<LoadFragment<'_>>,
        steps: &[(Undo, Pinned)],
    ) -> Result<(), Refusal> {
        let image = permit.into_action().image;
        let Some(engine) = &mut self.engine else { return out_of_memory() };
        engine.attach(image, steps.iter().map(|(_, data)| data)).or_else(|_| out_of_memory())
    }
}
