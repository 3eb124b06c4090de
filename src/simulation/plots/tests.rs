use super::super::report::{ClassReport, ServiceGap};
use super::super::rival::Rule;
use super::*;

fn report(rule: Rule, seed: u64) -> Report {
    let classes = vec![ClassReport { class: "batch", requests: 10, good: 5, ..ClassReport::default() }];
    let service_gap = ServiceGap { tokens: 20_000, bound: 30_000, contended_s: 2.5, tenants: 2 };
    Report {
        rule: rule.name(),
        seed,
        requests: 10,
        goodput: 0.5,
        classes,
        seconds: 9.0,
        service_gap,
        ..Report::default()
    }
}

fn recording() -> Recording {
    let mut served = OverTime::default();
    served.add(3_000_000, 70_000);
    let mut busy = OverTime::default();
    busy.span(1_000_000, 4_000_000);
    let ms = |from: f64| Distribution::of((1..100).map(move |at| from * f64::from(at)));
    Recording { served: vec![(17, served)], busy, miners: 2, ttft: ms(20.0), itl: ms(1.0), recovery: ms(5.0) }
}

fn all(rules: &[Rule]) -> Pictures {
    let mut pictures = Pictures::default();
    for seed in 1..3 {
        rules.iter().for_each(|rule| pictures.add(report(*rule, seed), recording()));
    }
    pictures
}

fn texts(svg: &str) -> Vec<&str> {
    svg.split("<text").skip(1).filter_map(|text| text.split(['>', '<']).nth(1)).map(str::trim).collect()
}

#[test]
fn every_picture_names_what_it_shows() {
    let pictures = all(&Rule::ALL).draw().expect("they are drawn");
    assert_eq!(pictures.len(), PICTURES.len());
    for (name, svg) in &pictures {
        let texts = texts(svg);
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{name}");
        assert!(texts.contains(&"10 requests a run, seeds 1 to 2"), "{name}: {texts:?}");
        for rule in Rule::ALL {
            assert!(texts.iter().any(|text| text.starts_with(rule.name())), "{name} leaves {} out", rule.name());
        }
    }
    let of = |wanted: &str| pictures.iter().find(|(name, _)| *name == wanted).map_or(Vec::new(), |(_, svg)| texts(svg));
    assert!(of("service").contains(&"tenant 17"));
    assert!(of("fairness").contains(&"bound") && of("fairness").contains(&"20.0"));
    assert!(of("goodput").contains(&"batch (% of requests)") && !of("goodput").contains(&"standard (% of requests)"));
}

#[test]
fn what_is_drawn_follows_from_what_was_recorded() {
    let rules = [Rule::Cuckoo, Rule::Horde];
    assert_eq!(all(&rules).draw(), all(&rules).draw());
    let mut other = all(&rules);
    other.add(report(Rule::Horde, 3), Recording { ttft: Distribution::of([9e6].into_iter()), ..recording() });
    assert_ne!(all(&rules).draw(), other.draw());
}

#[test]
fn pictures_of_nothing_are_pictures_all_the_same() {
    let mut nothing = Pictures::default();
    assert_eq!(nothing.draw().map(|pictures| pictures.len()), Ok(PICTURES.len()));
    nothing.add(Report { rule: "cuckoo", ..Report::default() }, Recording::default());
    let pictures = nothing.draw().expect("they are drawn");
    let recovery = pictures.iter().find(|(name, _)| *name == "recovery").expect("it is there");
    assert!(recovery.1.contains("No request lost its miner"));
}

#[test]
fn a_class_is_good_by_its_requests_whichever_seeds_have_them() {
    let with = |classes| Report { classes, ..report(Rule::Cuckoo, 1) };
    let batch = |good| ClassReport { class: "batch", requests: 30, good, ..ClassReport::default() };
    let reports = vec![with(vec![batch(30)]), with(vec![batch(3)]), with(Vec::new())];
    let of = OfRule { name: "cuckoo", reports, recording: Recording::default() };
    assert_eq!((of.good("batch"), of.good("standard")), (Some(55.0), None));
}

#[test]
fn a_colour_belongs_to_a_rule() {
    let mut colours: Vec<_> = Rule::ALL.map(|rule| page::colour(rule.name())).map(|of| (of.0, of.1, of.2)).to_vec();
    colours.sort_unstable();
    colours.dedup();
    assert_eq!(colours.len(), Rule::ALL.len());
}
