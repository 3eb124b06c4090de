use cuckoo_models::*;
fn main() {
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read("/tmp/m/templates.json").unwrap()).unwrap();
    let (mut same, mut both, mut diff) = (0, 0, std::collections::BTreeMap::new());
    for c in &cases {
        let file = c["file"].as_str().unwrap().to_owned();
        let t = ChatTemplate::new(c["template"].as_str().unwrap(), "<s>", "</s>");
        let m: Vec<Message> = serde_json::from_value(c["messages"].clone()).unwrap();
        let r = t.and_then(|t| t.render(&m, c["add_generation_prompt"].as_bool().unwrap()));
        match (&r, c["prompt"].as_str()) {
            (Ok(a), Some(b)) if a == b => same += 1,
            (Err(TemplateError::Refused(a)), None) if c["refused"] == *a => both += 1,
            (Err(_), None) => both += 1,
            (Ok(a), Some(b)) => { let at = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count(); let s = |t: &str| String::from_utf8_lossy(&t.as_bytes()[at.saturating_sub(30)..(at + 60).min(t.len())]).into_owned(); diff.insert(file, format!("OURS {:?} THEIRS {:?}", s(a), s(b))); }
            (r, b) => { diff.insert(file, format!("{:?} vs {:?} {:?}", r.as_ref().map(|s| s.chars().take(80).collect::<String>()), b.map(|s| s.chars().take(80).collect::<String>()), c["refused"])); }
        }
    }
    println!("same {same} both refuse {both}");
    for (f, d) in diff { println!("{f}: {d}"); }
}
