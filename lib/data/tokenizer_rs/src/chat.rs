//! Chat templates (Jinja) as model folders ship them.

use hf_chat_template::{ChatTemplate, FixedClock, Message, RenderInput};
use serde_json::{Map, Value};

use crate::Outcome;

fn string_of(object: &Value, key: &str) -> Outcome<String> {
    object
        .get(key)
        .and_then(Value::as_str)
        .map(str::to_string)
        .ok_or_else(|| format!("expected a string '{key}'"))
}

/// Renders the request of `cox_tok_render_chat`.
pub fn render(request: &str) -> Outcome<String> {
    let request: Value =
        serde_json::from_str(request).map_err(|e| e.to_string())?;
    // Templates may print today's date. A fixed clock keeps prompts, and with
    // them whole runs, reproducible.
    let clock = FixedClock::from_ymd(2024, 7, 26)
        .ok_or_else(|| "clock".to_string())?;
    let template = ChatTemplate::builder(&string_of(&request, "template")?)
        .clock(clock)
        .build()
        .map_err(|e| format!("chat template: {e}"))?;
    let mut messages = Vec::new();
    let list = request.get("messages").and_then(Value::as_array);
    for message in list.ok_or("expected a list 'messages'")? {
        messages.push(Message::new(
            string_of(message, "role")?,
            string_of(message, "content")?,
        ));
    }
    let mut extra = Map::new();
    for key in ["bos_token", "eos_token"] {
        extra.insert(key.to_string(), string_of(&request, key)?.into());
    }
    let input = RenderInput {
        messages,
        add_generation_prompt: request
            .get("add_generation_prompt")
            .and_then(Value::as_bool)
            .unwrap_or(false),
        extra,
        ..Default::default()
    };
    template.render(&input).map_err(|e| format!("chat template: {e}"))
}
