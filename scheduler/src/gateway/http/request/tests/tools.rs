//! Tools and calls in bodies.

use cuckoo_wire::message::{Tool, ToolCall, ToolChoice};

use super::*;

fn tool(name: &str) -> Value {
    let schema = json!({"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}});
    json!({"type": "function", "function": {"name": name, "description": "Finds.", "parameters": schema, "strict": true}})
}

#[test]
fn tools_get_through_as_they_were_sent() {
    let asked =
        chat(json!({"tools": [tool("get_weather"), {"type": "function", "function": {"name": "stop"}}]})).unwrap();
    let tools = asked.generate.tools.clone().unwrap();
    assert!(asked.ignored.header().is_none() && tools.parallel && tools.choice == ToolChoice::Auto);
    let [first, second] = tools.tools.as_slice() else { panic!("{tools:?}") };
    let schema = r#"{"type":"object","properties":{"z":{"type":"string"},"a":{"type":"integer"}}}"#;
    let expected = Tool {
        name: "get_weather".to_owned(),
        description: Some("Finds.".to_owned()),
        parameters: Some(schema.to_owned()),
        strict: true,
    };
    assert!(*first == expected, "properties keep their order: {:?}", first.parameters);
    assert!(*second == Tool { name: "stop".to_owned(), description: None, parameters: None, strict: false });
    for (choice, expected) in [
        (json!("none"), ToolChoice::Never),
        (json!("auto"), ToolChoice::Auto),
        (json!("required"), ToolChoice::Required),
        (json!({"type": "function", "function": {"name": "f"}}), ToolChoice::Named("f".to_owned())),
    ] {
        let asked = chat(json!({"tools": [tool("f")], "tool_choice": choice, "parallel_tool_calls": false})).unwrap();
        let tools = asked.generate.tools.clone().unwrap();
        assert_eq!((tools.choice.clone(), tools.parallel), (expected, false));
        assert_eq!(asked.generate.callable().is_some(), tools.choice != ToolChoice::Never);
    }
    assert!(chat(json!({"tools": [], "tool_choice": "auto"})).unwrap().generate.tools.is_none());
}

#[test]
fn tools_that_make_no_sense_are_named() {
    let long = "x".repeat(65);
    let big = json!({"type": "object", "description": "x".repeat(limits::CONSTRAINT_BYTES_MAX)});
    let with = |key: &str, value: Value| {
        let mut tool = tool("f");
        tool["function"][key] = value;
        json!([tool])
    };
    for (param, tools) in [
        ("tools", json!("f")),
        ("tools", json!(vec![tool("f"); limits::TOOLS_MAX + 1])),
        ("tools[0]", json!(["f"])),
        ("tools[0].type", json!([{"function": {"name": "f"}}])),
        ("tools[0].type", json!([{"type": "web_search"}])),
        ("tools[0].function", json!([{"type": "function"}])),
        ("tools[0].function", json!([{"type": "function", "function": "f"}])),
        ("tools[0].function.name", json!([{"type": "function", "function": {}}])),
        ("tools[0].function.name", with("name", json!(""))),
        ("tools[0].function.name", with("name", json!("a b"))),
        ("tools[0].function.name", with("name", json!("</tool_call>"))),
        ("tools[0].function.name", with("name", json!(long))),
        ("tools[1].function.name", json!([tool("f"), tool("f")])),
        ("tools[0].function.description", with("description", json!(1))),
        ("tools[0].function.parameters", with("parameters", json!("{}"))),
        ("tools[0].function.strict", with("strict", json!("yes"))),
        ("tools", with("parameters", big)),
    ] {
        refused_for(param, chat(json!({"tools": tools})));
    }
    let choice = |choice: Value| refused_for("tool_choice", chat(json!({"tools": [tool("f")], "tool_choice": choice})));
    assert!(choice(json!({"type": "function", "function": {"name": "g"}})).contains("not among the tools"));
    assert!(choice(json!("any")).contains("\"required\""));
    choice(json!(["f"]));
    refused_for("tool_choice", chat(json!({"tool_choice": "required"})));
    refused_for(
        "tool_choice",
        chat(json!({"tools": [], "tool_choice": {"type": "function", "function": {"name": "f"}}})),
    );
    refused_for("tool_choice.type", chat(json!({"tools": [tool("f")], "tool_choice": {"type": "allowed_tools"}})));
    refused_for("ignore_eos", chat(json!({"tools": [tool("f")], "ignore_eos": true})));
    let both = json!({"tools": [tool("f")], "response_format": {"type": "json_object"}});
    assert!(refused_for("response_format", chat(both)).contains("cannot be used together"));
    let completion = json!({"model": "wren", "prompt": "a", "tools": [tool("f")]});
    refused_for("tools", read(Surface::Completion, completion));
}

#[test]
fn calls_and_answers_get_through_and_must_fit() {
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
    let user = json!({"role": "user", "content": "x"});
    let asked = chat(json!({"messages": [
        user, {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "7"}]},
    ]}));
    let Prompt::Chat(turns) = asked.unwrap().generate.prompt else { panic!("it is a chat") };
    let expected = ToolCall { id: "call_1".to_owned(), name: "f".to_owned(), arguments: "{\"a\": 1}".to_owned() };
    assert!(turns[1].calls == [expected] && turns[1].content.is_empty());
    assert_eq!((turns[2].role.as_str(), turns[2].content.as_str()), ("tool", "7"));
    assert_eq!(turns[2].answers.as_deref(), Some("call_1"));
    let with = |path: &[&str], value: Value| {
        let mut call = call.clone();
        *path.iter().fold(&mut call, |place, key| &mut place[*key]) = value;
        json!([{"role": "assistant", "tool_calls": [call]}])
    };
    let first = "messages[0].tool_calls[0]";
    for (param, messages) in [
        ("messages[0].tool_calls".to_owned(), json!([{"role": "assistant", "content": "x", "tool_calls": {}}])),
        (
            "messages[0].tool_calls".to_owned(),
            json!([{"role": "assistant", "content": "x", "tool_calls": vec![call.clone(); limits::CALLS_MAX + 1]}]),
        ),
        ("messages[0]".to_owned(), json!([{"role": "user", "content": "x", "tool_calls": [call]}])),
        (format!("{first}.id"), with(&["id"], json!(null))),
        (format!("{first}.id"), with(&["id"], json!(""))),
        (format!("{first}.id"), with(&["id"], json!("x".repeat(limits::CALL_ID_BYTES_MAX + 1)))),
        (format!("{first}.type"), with(&["type"], json!("custom"))),
        (format!("{first}.function.name"), with(&["function", "name"], json!("a b"))),
        (format!("{first}.function.arguments"), with(&["function", "arguments"], json!({"a": 1}))),
        (
            "messages[1].tool_call_id".to_owned(),
            json!([{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_2", "content": "7"}]),
        ),
    ] {
        refused_for(&param, chat(json!({"messages": messages})));
    }
}
