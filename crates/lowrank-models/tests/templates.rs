//! Chat templates made to hurt: whatever one does, it ends in a text or in an error that names the template and the limit,
//! in little time and memory, and no stack overflows.

mod common;

use std::time::Instant;

use common::counting::{Counting, measured_on_all_threads};
use lowrank_models::{ChatTemplate, Conversation, Message};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that a template may take for a short conversation.
const LIMIT: usize = 100 << 20;

fn run(source: &str, talk: &Conversation) -> Result<String, String> {
    let started = Instant::now();
    let (result, took) = measured_on_all_threads(|| {
        let template = ChatTemplate::new(source, "<s>", "</s>").map_err(|e| e.to_string())?;
        template.render_conversation(talk, false).map_err(|e| e.to_string())
    });
    let what = &source[..source.len().min(200)];
    assert!(took < LIMIT, "{what}: took {took} bytes");
    assert!(started.elapsed().as_secs() < 60, "{what}: took {:?}", started.elapsed());
    if let Err(error) = &result {
        assert!(
            error.starts_with("chat template: ") && error.len() < 700 && !error.contains('\n'),
            "{what}: {error}"
        );
    }
    result
}

/// One test, since the memory of all threads is measured.
#[test]
fn templates_are_bounded() {
    let short: Conversation = [Message::new("user", "a")][..].into();
    let fails = |source: &str, part: &str| {
        let error = run(source, &short).expect_err(&source[..source.len().min(200)]);
        assert!(error.contains(part), "{error}");
    };

    // Operators inside each other, as often as there is room.
    let chain = |part: &str, end: &str, n: usize| format!("{{{{ {}{end} }}}}", part.repeat(n));
    let nesting = [
        ("not ", "a"),
        ("-", "1"),
        ("1 if 0 else ", "1"),
        ("1+", "1"),
        ("0 or ", "1"),
        ("1~", "1"),
        ("1**", "1"),
        ("1<", "2"),
    ];
    for (part, end) in nesting {
        fails(&chain(part, end, 20_000), "line 1: a tag has more than 4000 operators");
        let _ = run(&chain(part, end, 3_900), &short);
    }
    for part in [".b", "[0]", "()", "|upper", "|length"] {
        fails(&format!("\n{{{{ a{} }}}}", part.repeat(20_000)), "line 2: a tag has more than 4000 operators");
        let _ = run(&format!("{{{{ a{} }}}}", part.repeat(1_900)), &short);
    }
    let brackets = |n: usize| format!("{{% for {}a{} in b %}}{{% endfor %}}", "(".repeat(n), ")".repeat(n));
    fails(&brackets(20_000), "4000 operators");
    let _ = run(&brackets(3_900), &short);
    fails(&format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(20_000)), "1000 elif tags");
    let branches = format!("{{% if 0 %}}{}x{{% endif %}}y", "{% elif 0 %}".repeat(999));
    assert_eq!(run(&branches, &short).unwrap(), "y");
    fails(&"a".repeat(1 << 20), "has 1048576 bytes; a template may have 262144");
    fails(&"{% if a %}".repeat(3000), "recursion");
    // What only looks like operators.
    let quoted = format!("{{{{ '{}' }}}}{}", "not - + |".repeat(5000), "- | + not ".repeat(5000));
    assert_eq!(run(&quoted, &short).unwrap().len(), 9 * 5000 + 10 * 5000);

    // Values inside each other, freed, printed, compared, sorted.
    let deep = |n: usize| {
        let (open, close) = ("[".repeat(60), "]".repeat(60));
        format!(
            "{{% set ns = namespace(x=1, y=1) %}}{{% for i in range({n}) %}}{{% set ns.x = {open}ns.x{close} %}}\
             {{% set ns.y = {open}ns.y{close} %}}{{% endfor %}}"
        )
    };
    fails(&deep(100_000), "takes more than 500000 steps");
    assert_eq!(run(&deep(2000), &short).unwrap(), "");
    for end in [
        "{{ ns.x }}",
        "{{ ns.x == ns.y }}",
        "{{ ns.x|tojson }}",
        "{{ [ns.x, ns.y]|sort|length }}",
        "{{ {ns.x: 1}|length }}",
    ] {
        let _ = run(&(deep(2000) + end), &short);
    }
    let _ = run(&"{% set x = [x] %}".repeat(15_000), &short);

    // Texts and lists that grow.
    let grow = |start: &str, step: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x }}}}"
        )
    };
    for step in [
        "ns.x ~ ns.x",
        "ns.x + ns.x",
        "[ns.x, ns.x]|join('')",
        "ns.x.replace('a', 'aa')",
        "ns.x|replace('a', 'aa')",
        "'aa'.join(ns.x)",
        "'%s%s'|format(ns.x, ns.x)",
        "ns.x * 2",
    ] {
        fails(&grow("'aaaaaaaa'", step), "takes more than 500000 steps");
    }
    for width in [
        "'%1000000000d'|format(1)",
        "'%.1000000000f'|format(1)",
        "'{:1000000000}'.format(1)",
        "'{0:>1000000000}'.format('a')",
        "'{0:.1000000000f}'.format(1.5)",
        "'a\\nb'|indent(1000000000)",
        "'a' * 1000000000",
        "[1] * 1000000000",
        "range(1000000000)|list",
        "[1]|batch(1000000000, 0)|list",
        "range(90000)|slice(1000000000)|list",
        "10 ** 100000000",
    ] {
        run(&format!("{{{{ {width} }}}}"), &short).expect_err(width);
    }
    assert_eq!(run("{{ '{:>6}|{}'.format('ab', 20240101) }}", &short).unwrap(), "    ab|20240101");
    // Work without end.
    for recursion in [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m() %}{{ caller() }}{% endmacro %}{% macro k() %}{% call m() %}{{ k() }}{% endcall %}{% endmacro %}{{ k() }}",
        "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    ] {
        run(recursion, &short).expect_err(recursion);
    }
    // Lists of the same list, compared: 2^60 comparisons, which nothing counts.
    let shared = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}\
                  {% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}";
    let template = ChatTemplate::new(shared, "", "").unwrap();
    let error = template.render_conversation(&short, false).unwrap_err().to_string();
    assert!(error.contains("chat template: it takes more than 20 s"), "{error}");
    let error = template.render_conversation(&short, false).unwrap_err().to_string();
    assert!(error.contains("an earlier rendering took too long"), "{error}");
    // What the template says itself is cut.
    fails("{{ raise_exception('no\\n' * 5000) }}", "no\\nno");

    // Long conversations have their steps.
    let plain =
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content|trim + eos_token + '\n' }}{% endfor %}";
    let long: Vec<Message> =
        (0..2000).map(|i| Message::new(["user", "assistant"][i % 2], "word ".repeat(500))).collect();
    let template = ChatTemplate::new(plain, "", "</s>").unwrap();
    let text = template.render_conversation(&long[..].into(), false).unwrap();
    assert_eq!(text.matches("</s>").count(), 2000);
    let prompt = [Message::new("user", "x".repeat(5 << 20))];
    assert_eq!(template.render_conversation(&prompt[..].into(), false).unwrap().len(), (5 << 20) + 13);
}
