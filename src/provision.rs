//! Gets a model onto this machine's shelf, with a bar that shows how far it is, and a manifest that names it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use cuckoo_models::{
    Base, FetchConfig, Manifest, ModelFiles, Phase, Progress, Resolved, Shelf, Shelved, SignedManifest, resolve,
};
use cuckoo_wire::Identity;
use indicatif::{ProgressBar, ProgressStyle};

pub(crate) mod adapters;

pub(crate) use adapters::adapters;

use crate::args::{Bps, Common};
use crate::home::Home;

/// The royalty in manifests that this machine makes for models it was merely told to serve.
const DEFAULT_ROYALTY: Bps = Bps(800);
/// How often a bar is redrawn while nothing is reported.
const TICK: Duration = Duration::from_millis(200);

/// A model on the shelf.
pub(crate) struct Provisioned {
    /// The weights.
    pub(crate) weights: Shelved,
    /// What developers ask for.
    pub(crate) name: String,
}

/// Fetches what `model` means, unless it is here.
pub(crate) async fn weights(home: &Home, common: &Common, model: &str) -> anyhow::Result<(Shelved, Resolved)> {
    let resolved = resolve(model)?;
    let (dir, source, expect) = (home.models_dir(), resolved.source.clone(), resolved.expect);
    let mut config = FetchConfig { hub_token: common.hub_token.clone(), ..FetchConfig::default() };
    if let Some(endpoint) = &common.hub_endpoint {
        config.hub_endpoint.clone_from(endpoint);
    }
    let label = model.to_owned();
    let fetched = tokio::task::spawn_blocking(move || {
        let shelf = Shelf::open(dir)?;
        let mut bar = Bar::new(label);
        let fetched = source.fetch(&shelf, expect, &config, &mut |p| bar.show(p));
        bar.clear();
        anyhow::Ok(fetched?)
    });
    Ok((fetched.await??, resolved))
}

/// Fetches what `model` means and makes sure that a manifest names it: the one on the shelf, or a new one signed by
/// `identity`, to whom its royalty then goes.
pub(crate) async fn model(
    home: &Home,
    common: &Common,
    identity: &Identity,
    model: &str,
) -> anyhow::Result<Provisioned> {
    // A published name needs no source.
    let shelf = Shelf::open(home.models_dir())?;
    if let Ok(Some(signed)) = shelf.manifest(model)
        && let Some(weights) = shelf.find(&signed.manifest.weights)?
    {
        if let Some(base) = &signed.manifest.base {
            bail!("{model} is an adapter: serve it beside its base with --model {} --adapter {model}", base.name);
        }
        return Ok(Provisioned { weights, name: model.to_owned() });
    }
    let (weights, resolved) = weights(home, common, model).await?;
    if let Some(signed) = shelf.manifests()?.into_iter().find(|m| m.manifest.weights == weights.hash) {
        return Ok(Provisioned { weights, name: signed.manifest.name });
    }
    let (name, license) = match resolved.built_in {
        Some(known) => (known.name.to_owned(), known.license.to_owned()),
        None => (name_of(model), "LicenseRef-unknown".to_owned()),
    };
    let signed = manifest(&weights, &name, &license, DEFAULT_ROYALTY, identity)?;
    shelf.put_manifest(&signed)?;
    Ok(Provisioned { weights, name })
}

/// A signed manifest of weights on the shelf.
pub(crate) fn manifest(
    weights: &Shelved,
    name: &str,
    license: &str,
    royalty: Bps,
    author: &Identity,
) -> anyhow::Result<SignedManifest> {
    let files = ModelFiles::open(&weights.path)?;
    let spec = files.spec()?;
    // What a scheduler would refuse to serve is refused here, where its publisher sees why.
    files.tokenizer()?;
    files.chat_template()?;
    let facts = WeightsFacts {
        parameters: files.parameters(),
        quantization: files.quantization(),
        context_tokens: u32::try_from(spec.context_tokens)?,
        architecture: spec.architecture,
        base: None,
    };
    sign(weights, (name, license, royalty), author, facts)
}

/// What a manifest says of weights that only their file tells.
struct WeightsFacts {
    architecture: String,
    parameters: u64,
    quantization: String,
    context_tokens: u32,
    base: Option<Base>,
}

/// A manifest of `weights` as of now, signed.
fn sign(
    weights: &Shelved,
    (name, license, royalty): (&str, &str, Bps),
    author: &Identity,
    facts: WeightsFacts,
) -> anyhow::Result<SignedManifest> {
    let WeightsFacts { architecture, parameters, quantization, context_tokens, base } = facts;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    let manifest = Manifest {
        name: name.to_owned(),
        license: license.to_owned(),
        author: author.public_key().0,
        royalty_bps: royalty.0,
        weights: weights.hash,
        weights_bytes: weights.bytes,
        architecture,
        parameters,
        quantization,
        context_tokens,
        created_unix: created.as_secs(),
        base,
    };
    Ok(manifest.sign(author.signing_key())?)
}

/// A name for a file or folder that nobody has named: its own, in the letters that names may have.
fn name_of(source: &str) -> String {
    let source = source.trim_end_matches('/');
    let file = source.rsplit('/').next().unwrap_or(source);
    // A folder's name may hold points that begin no extension.
    let stem = file.strip_suffix(".gguf").unwrap_or(file);
    let name: String = stem
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .take(64)
        .collect();
    match name.trim_matches(['-', '.', '_']) {
        "" => "model".to_owned(),
        name => name.to_owned(),
    }
}

/// One bar a phase; shown on a terminal only.
struct Bar {
    label: String,
    shown: Option<(Phase, ProgressBar)>,
}

impl Bar {
    fn new(label: String) -> Self {
        Self { label, shown: None }
    }

    fn show(&mut self, progress: Progress) {
        if self.shown.as_ref().is_none_or(|(phase, _)| *phase != progress.phase) {
            self.clear();
            self.shown = Some((progress.phase, self.bar(progress)));
        }
        if let Some((_, bar)) = &self.shown {
            bar.set_position(progress.done_bytes);
        }
    }

    fn bar(&self, progress: Progress) -> ProgressBar {
        let doing = match progress.phase {
            Phase::Downloading => "fetching",
            Phase::Copying => "unpacking",
            Phase::Verifying => "verifying",
        };
        let (bar, template) = match progress.total_bytes {
            Some(total) => (
                ProgressBar::new(total),
                "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
            ),
            None => (ProgressBar::no_length(), "{msg} {spinner} {decimal_bytes} {decimal_bytes_per_sec}"),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(format!("{doing} {}", self.label));
        bar.enable_steady_tick(TICK);
        bar
    }

    fn clear(&mut self) {
        if let Some((_, bar)) = self.shown.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_get_names_that_a_manifest_may_have() {
        for (source, name) in [
            ("/a/b/My Model.Q4_1.gguf", "my-model.q4_1"),
            ("hf:o/r/x.gguf", "x"),
            ("日本.gguf", "model"),
            ("..gguf", "model"),
            ("./models/Qwen2.5-0.5B/", "qwen2.5-0.5b"),
        ] {
            assert_eq!(name_of(source), name);
        }
    }
}
