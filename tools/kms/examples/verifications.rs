//! The verifier's figures, beside the `sev` crate's: the same report and the same certificates, in one process, from their bytes
//! to the verdict. The crate says whether the signatures hold; the verifier makes the whole checklist.
//!
//! Takes a report and its VCEK (Milan), and prints JSON: verifications in a second, the median of rounds that take turns.

use anyhow::{Context as _, Result, ensure};
use parma_kms::bundle::Bundle;
use parma_kms::verify::{Evidence, Expected, Moment, Roots, verify};
use serde_json::json;
use sev::certs::snp::{Certificate, Chain, Verifiable as _, builtin::milan, ca};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser as _;
use std::time::{Duration, Instant};

/// Rounds of each.
const ROUNDS: usize = 9;
/// How long a round lasts.
const ROUND: Duration = Duration::from_millis(500);
/// When the certificates of the evidence that there is are valid.
const AT: &str = "2024-01-01";

fn main() -> Result<()> {
    let files: Vec<String> = std::env::args().skip(1).collect();
    let [report, vcek] = &files[..] else { anyhow::bail!("a report and its VCEK are needed") };
    let read = |path: &String| std::fs::read(path).with_context(|| format!("cannot read {path}"));
    let (report, vcek) = (read(report)?, read(vcek)?);
    let mut bundle = Bundle::default();
    for certificate in [milan::ARK, milan::ASK, &vcek] {
        bundle.add(certificate)?;
    }
    let [ark, ask, vcek] = &bundle.certificates[..] else { anyhow::bail!("three certificates are needed") };
    let judged = parma_kms::verify::Report::read(&report).map_err(|why| anyhow::anyhow!("{why}"))?;
    let expected = Expected {
        measurements: vec![judged.measurement()],
        policies: vec![judged.host_data()],
        ..Expected::default()
    };
    let (roots, now) = (Roots::amd(), Moment::parse(AT).map_err(anyhow::Error::msg)?);
    let ours = || {
        let evidence =
            Evidence { report: &report, certificates: &bundle.certificates, ..Evidence::default() };
        ensure!(verify(&evidence, &expected, &roots, now).passed(), "our verifier refuses the evidence");
        Ok(())
    };
    let theirs = || -> Result<()> {
        let ca = ca::Chain { ark: Certificate::from_der(ark)?, ask: Certificate::from_der(ask)? };
        let chain = Chain { ca, vek: Certificate::from_der(vcek)? };
        (&chain, &AttestationReport::from_bytes(&report)?)
            .verify()
            .context("the sev crate refuses the evidence")
    };
    let (mut parma, mut sev) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        parma.push(rate(ours)?);
        sev.push(rate(theirs)?);
    }
    let median = |mut rates: Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    };
    println!("{}", json!({"parma_per_second": median(parma), "sev_per_second": median(sev)}));
    Ok(())
}

/// How often this can be done in a second.
fn rate(verification: impl Fn() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    let mut done = 0.0;
    while start.elapsed() < ROUND {
        verification()?;
        done += 1.0;
    }
    Ok(done / start.elapsed().as_secs_f64())
}
