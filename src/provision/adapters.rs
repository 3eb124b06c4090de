//! Gets adapters of a model onto this machine's shelf, with manifests that name them and their base.

use std::path::Path;

use anyhow::{Context, bail};
use cuckoo_models::manifest::ROYALTY_BPS_MAX;
use cuckoo_models::{Adapter, ArchSpec, ModelFiles, Shelf, Shelved, SignedManifest, adapter};
use cuckoo_wire::Identity;

use super::{DEFAULT_ROYALTY, Provisioned, WeightsFacts, name_of, sign, weights};
use crate::args::{Bps, Common};
use crate::home::Home;

/// The published model that adapters change.
pub(crate) struct Base {
    signed: SignedManifest,
    pub(crate) spec: ArchSpec,
}

impl Base {
    /// The model of that name, which must be on the shelf.
    pub(crate) fn find(shelf: &Shelf, name: &str) -> anyhow::Result<Self> {
        let signed = shelf.manifest(name)?;
        let signed = signed.with_context(|| format!("no model {name} is on the shelf: pull or publish it first"))?;
        if let Some(base) = &signed.manifest.base {
            bail!("{name} is an adapter itself: name its base, {}", base.name);
        }
        let found = shelf.find(&signed.manifest.weights)?;
        let found = found.with_context(|| format!("the weights of {name} are not on the shelf: pull it again"))?;
        let spec = ModelFiles::open(&found.path)?.spec()?;
        Ok(Self { signed, spec })
    }

    /// The most that an adapter's author may ask: both authors together have one author's limit.
    fn royalty_left(&self) -> u16 {
        ROYALTY_BPS_MAX.saturating_sub(self.signed.manifest.royalty_bps)
    }

    /// A signed manifest of an adapter on the shelf.
    pub(crate) fn manifest(
        &self,
        weights: &Shelved,
        name: &str,
        license: &str,
        royalty: Bps,
        author: &Identity,
    ) -> anyhow::Result<SignedManifest> {
        let base = &self.signed.manifest;
        if royalty.0 > self.royalty_left() {
            let percent = |bps: u16| f64::from(bps) / 100.0;
            bail!(
                "the royalty of {} is {} %, which leaves at most {} % for an adapter of it: ask for less with --royalty",
                base.name,
                percent(base.royalty_bps),
                percent(self.royalty_left())
            );
        }
        let opened = Adapter::open(&weights.path, &self.spec)?;
        let facts = WeightsFacts {
            architecture: base.architecture.clone(),
            parameters: opened.parameters(),
            quantization: opened.quantization().to_owned(),
            context_tokens: base.context_tokens,
            base: Some(cuckoo_models::Base { name: base.name.clone(), weights: base.weights }),
        };
        sign(weights, (name, license, royalty), author, facts)
    }
}

/// Brings `adapters` of `model` onto the shelf, and makes sure that manifests name them.
pub(crate) async fn adapters(
    home: &Home,
    common: &Common,
    identity: &Identity,
    model: &Provisioned,
    adapters: &[String],
) -> anyhow::Result<Vec<Provisioned>> {
    if adapters.is_empty() {
        return Ok(Vec::new());
    }
    let shelf = Shelf::open(home.models_dir())?;
    let base = Base::find(&shelf, &model.name)?;
    let mut provisioned = Vec::new();
    for adapter in adapters {
        let one = one(home, common, identity, (&shelf, &base), adapter).await;
        provisioned.push(one.with_context(|| format!("adapter {adapter}"))?);
    }
    Ok(provisioned)
}

async fn one(
    home: &Home,
    common: &Common,
    identity: &Identity,
    (shelf, base): (&Shelf, &Base),
    adapter: &str,
) -> anyhow::Result<Provisioned> {
    let of = &base.signed.manifest;
    if let Ok(Some(signed)) = shelf.manifest(adapter) {
        match &signed.manifest.base {
            None => bail!("that is a model and no adapter: serve it with --model"),
            Some(other) if other.weights != of.weights => {
                bail!("it is an adapter of {}, not of {}", other.name, of.name)
            }
            Some(_) => {}
        }
        let weights =
            shelf.find(&signed.manifest.weights)?.context("its weights are not on the shelf: publish it again")?;
        Adapter::open(&weights.path, &base.spec)?;
        return Ok(Provisioned { weights, name: adapter.to_owned() });
    }
    let path = Path::new(adapter);
    let weights = match path.exists() {
        true => adapter::shelve(shelf, path, &base.spec)?,
        false => {
            let (weights, _) = weights(home, common, adapter).await?;
            Adapter::open(&weights.path, &base.spec)?;
            weights
        }
    };
    let named = |m: &SignedManifest| {
        m.manifest.weights == weights.hash && m.manifest.base.as_ref().is_some_and(|b| b.weights == of.weights)
    };
    if let Some(signed) = shelf.manifests()?.into_iter().find(named) {
        return Ok(Provisioned { weights, name: signed.manifest.name });
    }
    let name = name_of(adapter.trim_end_matches('/'));
    if shelf.manifest(&name)?.is_some() {
        bail!("the name {name} is taken: publish it under another with `cuckoo models publish --base {}`", of.name);
    }
    let royalty = Bps(DEFAULT_ROYALTY.0.min(base.royalty_left()));
    let signed = base.manifest(&weights, &name, "LicenseRef-unknown", royalty, identity)?;
    shelf.put_manifest(&signed)?;
    Ok(Provisioned { weights, name })
}
