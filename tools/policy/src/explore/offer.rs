//! Fragments that a host may bring: each content, signed by whoever the policy names.

use std::collections::BTreeSet;

use anyhow::{Context, Result, anyhow, ensure};
use parma_guest::policy::fragment::{PACKAGE, RULES};
use serde_json::{Value as Json, json};

use super::reading::{FRAMEWORK_VERSION, Reading, completed, items, version_of};
use crate::reference::Reference;

/// How far down fragments may name fragments (F06).
const MAX_LEVEL: usize = 3;

/// In place of an offer's number: what no policy allows it to add.
const NEVER: usize = usize::MAX;

/// A fragment under a name that is welcome, once what names it is there.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub issuer: String,
    pub feed: String,
    /// The highest of the numbers that are asked for: with it, everyone who names it does.
    pub svn: u32,
    /// The lowest of them: below, it is not welcome.
    pub least: u32,
    /// The number of its content.
    pub content: usize,
    /// The kinds of entries that it may add.
    pub kinds: BTreeSet<String>,
    /// The offer that names it; `None` for the policy.
    pub by: Option<usize>,
    level: usize,
}

/// What a fragment's image holds.
pub(super) struct Content {
    fields: Json,
}

impl Content {
    /// # Errors
    /// It is no fragment, or its data cannot be worked out.
    pub fn new(image: &[u8]) -> Result<Content> {
        let reference = Reference::new(image)?;
        let mut fields = json!({});
        for rule in RULES {
            let input = json!({"parameters": {}});
            let value = reference.evaluate(&format!("data.{PACKAGE}.{rule}"), Some(&input));
            let value = value.map_err(|fault| anyhow!("the fragment's {rule}: {fault:?}"))?;
            if let Some(value) = value {
                fields[rule] = value;
            }
        }
        Ok(Content { fields })
    }

    /// What the policy is shown of it.
    pub fn shown(&self) -> &Json {
        &self.fields
    }

    /// Its entries of a kind, complete.
    fn entries(&self, kind: &str) -> Vec<Json> {
        let version = ["framework_version", "framework_svn"].map(|name| &self.fields[name]);
        let version = version.into_iter().find_map(Json::as_str).and_then(version_of);
        let Some(version) = version.filter(|version| *version <= FRAMEWORK_VERSION) else {
            return Vec::new();
        };
        let list = items(&self.fields[kind]).iter().cloned();
        if kind == "containers" {
            list.map(|entry| completed(entry, version)).collect()
        } else {
            list.collect()
        }
    }
}

/// Every fragment that may be brought, and adds to the reading what each would add.
///
/// # Errors
/// What names one says more than is explored: parameters, receipts, or a number that is none.
pub(super) fn offers(policy: &mut Reading, named: &[Json], contents: &[Content]) -> Result<Vec<Offer>> {
    let mut offers: Vec<Offer> = Vec::new();
    let mut naming: Vec<(Option<usize>, usize, Vec<Json>)> = vec![(None, 1, named.to_vec())];
    while let Some((by, level, named)) = naming.pop() {
        let from = offers.len();
        for entry in &named {
            let text = |field: &str| entry[field].as_str().map(str::to_string);
            let (issuer, feed) =
                text("issuer").zip(text("feed")).context("a fragment without issuer or feed")?;
            let minimum = match &entry["minimum_svn"] {
                Json::String(text) => text.parse().ok(),
                number => number.as_u64().and_then(|number| u32::try_from(number).ok()),
            };
            let minimum: u32 = minimum
                .with_context(|| format!("{feed}: minimum_svn is no number, which is not explored"))?;
            let plain = |field: &str| match &entry[field] {
                Json::Null => true,
                Json::Array(list) => list.is_empty(),
                Json::Object(fields) => fields.is_empty(),
                _ => false,
            };
            for field in ["parameters", "required_receipts"] {
                ensure!(plain(field), "{feed}: fragments with {field} are not explored");
            }
            let kinds: BTreeSet<String> =
                items(&entry["includes"]).iter().filter_map(Json::as_str).map(str::to_string).collect();
            for content in 0..contents.len() {
                let same = |offer: &&mut Offer| {
                    offer.issuer == issuer && offer.feed == feed && offer.content == content
                };
                match offers[from..].iter_mut().find(same) {
                    Some(offer) => {
                        offer.svn = offer.svn.max(minimum);
                        offer.least = offer.least.min(minimum);
                        offer.kinds.extend(kinds.clone());
                    }
                    None => offers.push(Offer {
                        issuer: issuer.clone(),
                        feed: feed.clone(),
                        svn: minimum,
                        least: minimum,
                        content,
                        kinds: kinds.clone(),
                        by,
                        level,
                    }),
                }
            }
        }
        for (number, offer) in offers.iter().enumerate().skip(from) {
            let Offer { level, content, kinds, .. } = offer;
            let next = contents[*content].entries("fragments");
            if *level < MAX_LEVEL && kinds.contains("fragments") && !next.is_empty() {
                naming.push((Some(number), level + 1, next));
            }
        }
    }
    for (number, offer) in offers.iter().enumerate() {
        let content = &contents[offer.content];
        // What it may not add is asked for all the same.
        let from = |kind: &str| if offer.kinds.contains(kind) { number } else { NEVER };
        policy.add_containers(content.entries("containers"), from("containers"), &offer.feed);
        policy.add_external(content.entries("external_processes"), from("external_processes"));
        policy.platform_rules |=
            offer.kinds.contains("platform_rules") && !content.entries("platform_rules").is_empty();
    }
    Ok(offers)
}
