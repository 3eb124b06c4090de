//! Templates against transformers' results, and templates made to break the engine.
#![allow(clippy::unwrap_used)]

use super::*;

fn compile(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, "<s>", "</s>").unwrap()
}

fn render(source: &str) -> Result<String, TemplateError> {
    compile(source).render(&[Message::new("user", " a cat ")], true)
}

/// Whatever a bomb does, it must not end the process: compiling and rendering give a result of some kind.
fn survive(what: &str, source: &str) {
    let started = std::time::Instant::now();
    let result = ChatTemplate::new(source, "", "").and_then(|template| template.render(&[], false));
    let shown = result.map(|text| text.chars().take(40).collect::<String>());
    println!("{what}: {} bytes, {:?}: {shown:?}", source.len(), started.elapsed());
}

#[test]
fn no_bomb_overflows_the_stack() {
    let full = |unit: &str, fixed: usize| unit.repeat((SOURCE_BYTES_MAX - fixed) / unit.len());
    survive("attributes", &format!("{{{{ a{} }}}}", full(".a", 16)));
    survive("sums", &format!("{{{{ 1{} }}}}", full("+1", 16)));
    survive("concatenations", &format!("{{{{ 1{} }}}}", full("~1", 16)));
    survive("filters", &format!("{{{{ 1{} }}}}", full("|e", 16)));
    survive("tests", &format!("{{{{ 1{} }}}}", full(" is a", 16)));
    survive("calls", &format!("{{{{ a{} }}}}", full("()", 16)));
    survive("indices", &format!("{{{{ a{} }}}}", full("[1]", 16)));
    survive("nots", &format!("{{{{ {} a }}}}", full("not ", 16)));
    survive("minuses", &format!("{{{{ {} 1 }}}}", full("-", 16)));
    survive("parentheses", &format!("{{{{ {}", full("(", 16)));
    survive("brackets", &format!("{{{{ {}", full("[", 16)));
    survive("braces", &format!("{{{{ {}", full("{1:", 16)));
    survive("powers", &format!("{{{{ 1{} }}}}", full("**1", 16)));
    survive("conditions", &format!("{{{{ 1{} }}}}", full(" if 1 else 1", 16)));
    survive("comparisons", &format!("{{{{ 1{} }}}}", full("<1", 16)));
    survive("ors", &format!("{{{{ 1{} }}}}", full(" or 1", 16)));
    survive("ifs", &full("{%if 1%}", 0));
    survive("elifs", &format!("{{%if 1%}}{}{{%endif%}}", full("{%elif 1%}", 32)));
    survive("fors", &full("{%for a in b%}", 0));
    survive("blocks", &(0..6_000).map(|i| format!("{{%block b{i}%}}")).collect::<String>());
    survive("6000 ifs", &format!("{}{}", "{%if 1%}".repeat(6_000), "{%endif%}".repeat(6_000)));
}

#[test]
fn no_value_overflows_the_stack() {
    let nest = "{% set n = namespace(x=[]) %}{% for a in range(99999) %}{% set n.x = [n.x] %}{% endfor %}";
    survive("nested list", nest);
    let nest = "{% set n = namespace(x=[]) %}{% for a in range(12000) %}{% set n.x = [n.x] %}{% endfor %}";
    for (what, use_) in
        [("", ""), ("printed", "{{ n.x }}"), ("json", "{{ n.x|tojson }}"), ("equal", "{{ n.x == n.x }}")]
    {
        survive(what, &format!("{nest}{use_}"));
    }
    survive("nested dict", &nest.replace("[n.x]", "{'a': n.x}"));
}

#[test]
fn output_fuel_and_recursion_are_bounded() {
    let long = "{% for a in range(2000) %}{{ 'x' * 1000 }}{% endfor %}";
    assert_eq!(render(long), Err(TemplateError::OutputTooLong));
    let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
    assert_eq!(render(endless), Err(TemplateError::Fuel));
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(matches!(render(deep), Err(TemplateError::Failed(why)) if why.contains("recursion")));
    let source = "x".repeat(SOURCE_BYTES_MAX + 1);
    assert!(matches!(ChatTemplate::new(&source, "", ""), Err(TemplateError::TooLong(_))));
    assert!(matches!(ChatTemplate::new("{% if %}", "", ""), Err(TemplateError::Syntax(_))));
    assert!(render("{% include 'file' %}").is_err());
    // A long conversation is no bomb.
    let messages = vec![Message::new("user", "hello"); 2_000];
    let prompt = compile("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}").render(&messages, true);
    assert_eq!(prompt.unwrap().len(), 2_000 * "<user>hello".len());
}

#[test]
fn values_with_shared_parts_are_bounded() {
    let shared = "{% set n = namespace(x=[1]) %}{% for a in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}";
    assert_eq!(render(&format!("{shared}{{{{ n.x }}}}")), Err(TemplateError::OutputTooLong));
    for use_ in ["n.x|string|length", "n.x|tojson|length", "n.x|tojson(sort_keys=true)|length"] {
        let failed = render(&format!("{shared}{{{{ {use_} }}}}"));
        assert!(matches!(failed, Err(TemplateError::Failed(_))), "{use_}: {failed:?}");
    }
}

/// What Python 3.11 prints for the same values.
#[test]
fn values_look_as_in_python() {
    for (source, expected) in [
        ("[1, 2.0, 1e-5, 1e16, 1e22, 0.0001, none, true]", "[1, 2.0, 1e-05, 1e+16, 1e+22, 0.0001, None, True]"),
        ("-1.5e-7", "-1.5e-07"),
        ("(1,)", "(1,)"),
        ("(1, 'b')", "(1, 'b')"),
        ("{'a': [{}], 'it\\'s': '\"\\''}", r#"{'a': [{}], "it's": '"\''}"#),
        (
            "['\\n\\t\\\\', 'é日🦀', '\u{2028}\u{7f}\u{a0}\u{e000}\u{10ffff}']",
            r"['\n\t\\', 'é日🦀', '\u2028\x7f\xa0\ue000\U0010ffff']",
        ),
    ] {
        assert_eq!(render(&format!("{{{{ {source} }}}}")).unwrap(), expected);
        assert_eq!(render(&format!("{{{{ ({source})|string }}}}")).unwrap(), expected);
        assert_eq!(render(&format!("{{{{ '<' + ({source})|string + '>' }}}}")).unwrap(), format!("<{expected}>"));
    }
}

/// What Python's `json.dumps` gives for the same values.
#[test]
fn json_is_written_as_in_python() {
    let value = "{'b': ['é🦀\\x7f', 1e-5, 2.0, none], 'a': {}}";
    for (options, expected) in [
        ("", "{\"b\": [\"é🦀\u{7f}\", 1e-05, 2.0, null], \"a\": {}}"),
        ("ensure_ascii=true", r#"{"b": ["\u00e9\ud83e\udd80\u007f", 1e-05, 2.0, null], "a": {}}"#),
        ("separators=(',', ':')", "{\"b\":[\"é🦀\u{7f}\",1e-05,2.0,null],\"a\":{}}"),
        ("sort_keys=true", "{\"a\": {}, \"b\": [\"é🦀\u{7f}\", 1e-05, 2.0, null]}"),
        ("indent=1", "{\n \"b\": [\n  \"é🦀\u{7f}\",\n  1e-05,\n  2.0,\n  null\n ],\n \"a\": {}\n}"),
        ("indent=0, separators=('; ', '=')", "{\n\"b\"=[\n\"é🦀\u{7f}\"; \n1e-05; \n2.0; \nnull\n]; \n\"a\"={}\n}"),
    ] {
        let value = value.replace("\\x7f", "\u{7f}");
        assert_eq!(render(&format!("{{{{ {value}|tojson({options}) }}}}")).unwrap(), expected, "{options}");
    }
    assert!(matches!(render("{{ 1|tojson(separators=[',']) }}"), Err(TemplateError::Failed(_))));
    assert!(matches!(render("{{ 1|tojson(other=1) }}"), Err(TemplateError::Failed(_))));
}

#[test]
fn refusals_carry_the_templates_words() {
    let refused = render("{{ raise_exception('roles must alternate') }}");
    assert_eq!(refused, Err(TemplateError::Refused("roles must alternate".to_owned())));
    let refused = render("{% macro m() %}{{ raise_exception('inner') }}{% endmacro %}{{ m() }}");
    assert_eq!(refused, Err(TemplateError::Refused("inner".to_owned())));
}

#[test]
fn generation_tags_mark_nothing() {
    let source =
        "a\n  {% generation %}\nb {%- generation -%} c {% endgeneration %}{%endgeneration%}\n{{ 'generation' }}";
    assert_eq!(render(source).unwrap(), "a\nbc generation");
    let untouched = "{% set generation = 1 %}{% if generation %}x{% endif %}{% set endgeneration = 2 %}";
    assert_eq!(python::without_generation_tags(untouched), untouched);
}

#[test]
fn the_time_is_told() {
    let year: i32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!((2024..2200).contains(&year), "{year}");
    let date = render("{{ strftime_now('%d %b %Y') }}").unwrap();
    assert_eq!(date.split(' ').count(), 3, "{date}");
    assert!(render("{{ strftime_now('%') }}").is_err());
}

#[test]
fn the_guard_reads_tags_as_the_engine_does() {
    let many = "a ~ ".repeat(2_000);
    let hidden = [
        format!("{{{{ '}}}}' ~ {many} a }}}}"),
        format!("{{{{ \"\\\"}}}}\" ~ {many} a }}}}"),
        format!("{{% set x = {{'a': {{'b': 1}}}} ~ {many} a %}}"),
        format!("{{# {{% raw %}} #}}{{{{ {many} a }}}}"),
        format!("{{% raw %}} ' {{{{ \" {{%- endraw %}}{{{{ {many} a }}}}"),
        format!("{{{{{{'a': 1}}}}}}{{{{ {many} a }}}}"),
    ];
    for source in hidden {
        assert!(guard::check(&source).is_err(), "{}", &source[..40]);
    }
    for harmless in [many.as_str(), &format!("{{# {many} #}}"), &format!("{{% raw %}}{{{{ {many} }}}}{{% endraw %}}")] {
        guard::check(harmless).unwrap();
    }
    guard::check(&format!("{{{{ '{many}' }}}}")).unwrap();
}

/// Prompts made by jinja2 set up as transformers does; `tests/fixtures/make_fixtures.py` makes them.
#[test]
fn agrees_with_transformers() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/smollm2_chat.json");
    let fixture: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let (bos, eos) = (text(&fixture["bos"]), text(&fixture["eos"]));
    for (set, least) in [("model", 14), ("small", 200)] {
        let cases = fixture[set].as_array().unwrap();
        assert!(cases.len() >= least);
        for case in cases {
            let template = ChatTemplate::new(case["template"].as_str().unwrap(), &bos, &eos).unwrap();
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let prompt = template.render(&messages, case["add_generation_prompt"].as_bool().unwrap());
            let expected = match case["refused"].as_str() {
                Some(why) => Err(TemplateError::Refused(why.to_owned())),
                None => Ok(text(&case["prompt"])),
            };
            assert_eq!(prompt, expected, "{}", case["template"]);
        }
    }
}
