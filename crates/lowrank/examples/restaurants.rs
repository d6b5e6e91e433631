//! Writes a small data set of made-up restaurants: a meaning representation as the prompt, a
//! description of the place as the completion.
//!
//! ```text
//! cargo run --release -p lowrank --example restaurants -- --out DIR --train 480 --eval 60 --seed 1
//! ```
//!
//! makes `DIR/train.jsonl` and `DIR/eval.jsonl` of `{"prompt", "completion"}` lines. A training
//! prompt has one to four descriptions; no prompt of the evaluation occurs in training. The same
//! arguments give the same files.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const NAMES: [&str; 26] = [
    "Copper Kettle",
    "The Lazy Heron",
    "Saffron Steps",
    "Juniper & Rye",
    "The Paper Lantern",
    "Old Mill Table",
    "Marigold",
    "Blue Anchor Kitchen",
    "The Tin Whistle",
    "Olive Row",
    "Casa Belén",
    "The Quiet Fork",
    "Nine Barrels",
    "Ember & Oak",
    "The Brass Pear",
    "Wild Thyme",
    "Harvest Moon",
    "Little Odessa",
    "The Salted Fig",
    "Pepper Lane",
    "The Corner Plate",
    "Sunday's",
    "Velvet Spoon",
    "The Rusty Ladle",
    "Cloud Nine Canteen",
    "The Green Gate",
];
const EAT_TYPES: [&str; 4] = ["restaurant", "coffee house", "wine bar", "diner"];
const FOODS: [&str; 10] = [
    "Greek",
    "Thai",
    "Mexican",
    "Georgian",
    "Korean",
    "Lebanese",
    "Spanish",
    "vegetarian",
    "Ethiopian",
    "Portuguese",
];
const PRICES: [&str; 3] = ["low", "mid-range", "high"];
const RATINGS: [&str; 4] = ["2 out of 5", "3 out of 5", "4 out of 5", "5 out of 5"];
const AREAS: [&str; 5] = ["harbour", "old town", "market square", "north bank", "station quarter"];
const FAMILY: [&str; 2] = ["yes", "no"];
const LANDMARKS: [&str; 10] = [
    "the Clock Tower",
    "Gull Bridge",
    "the Botanic Garden",
    "Saint Anne's Church",
    "the Tram Museum",
    "Kestrel Books",
    "the Opera House",
    "Pine Street Cinema",
    "the Ferry Terminal",
    "Lantern Park",
];

/// More lines than this run out of different restaurants.
const MOST_LINES: usize = 100_000;

/// A meaning representation. A name always; the rest may be unknown.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Place {
    name: &'static str,
    eat_type: Option<&'static str>,
    food: Option<&'static str>,
    price: Option<&'static str>,
    rating: Option<&'static str>,
    area: Option<&'static str>,
    family: Option<&'static str>,
    near: Option<&'static str>,
}

impl Place {
    /// Known in three facts at least, besides its name.
    fn random(random: &mut Random) -> Self {
        loop {
            let mut known = 0;
            let mut maybe = |random: &mut Random, from: &[&'static str]| {
                let value = random.chance(65).then(|| random.pick(from));
                known += u32::from(value.is_some());
                value
            };
            let place = Self {
                name: random.pick(&NAMES),
                eat_type: maybe(random, &EAT_TYPES),
                food: maybe(random, &FOODS),
                price: maybe(random, &PRICES),
                rating: maybe(random, &RATINGS),
                area: maybe(random, &AREAS),
                family: maybe(random, &FAMILY),
                near: maybe(random, &LANDMARKS),
            };
            if known >= 3 {
                return place;
            }
        }
    }

    fn prompt(&self) -> String {
        let mut out = format!("name[{}]", self.name);
        let facts = [
            ("eatType", self.eat_type),
            ("food", self.food),
            ("priceRange", self.price),
            ("customer rating", self.rating),
            ("area", self.area),
            ("familyFriendly", self.family),
            ("near", self.near),
        ];
        for (key, value) in facts {
            if let Some(value) = value {
                write!(out, ", {key}[{value}]").expect("a string takes all");
            }
        }
        out
    }

    /// One or two sentences that say every fact once.
    fn describe(&self, random: &mut Random) -> String {
        // Facts not told yet: each part of the opening takes what it tells.
        let mut left = *self;
        let noun = left.eat_type.take().unwrap_or_else(|| random.pick(&["place", "spot", "venue"]));
        let mut adjectives = Vec::new();
        if left.price.is_some() && random.chance(45) {
            adjectives.push(match left.price.take() {
                Some("low") => random.pick(&["cheap", "inexpensive", "budget"]),
                Some("high") => random.pick(&["expensive", "upmarket", "pricey"]),
                _ => random.pick(&["mid-priced", "moderately priced"]),
            });
        }
        if left.family.is_some() && random.chance(35) {
            adjectives.push(match left.family.take() {
                Some("yes") => random.pick(&["family-friendly", "child-friendly"]),
                _ => "adults-only",
            });
        }
        let adjectives: String = adjectives.into_iter().flat_map(|word| [word, " "]).collect();
        let place = left.place(random);
        let kind = format!("{adjectives}{noun}");
        let kind = format!("{} {kind}", article(&kind));
        let name = self.name;

        let opening = match (left.food.take(), place) {
            (Some(food), Some(place)) => match random.below(5) {
                0 => format!("{name} is {kind} {place} that serves {food} food"),
                1 => format!("{}, you will find {name}, {kind} with {food} dishes", capital(&place)),
                2 => format!("For {food} food {place}, try {name}, {kind}"),
                3 => format!("{}, {name} is {kind} cooking {food} meals", capital(&place)),
                _ => format!("There is {kind} called {name} {place}, and its kitchen is {food}"),
            },
            (Some(food), None) => match random.below(4) {
                0 => format!("{name} is {kind} that serves {food} food"),
                1 => format!("{name}, {kind}, offers {food} dishes"),
                2 => format!("If {food} food is what you want, go to {name}, {kind}"),
                _ => format!("There is {kind} called {name} with {} {food} menu", article(food)),
            },
            (None, Some(place)) => match random.below(4) {
                0 => format!("{name} is {kind} {place}"),
                1 => format!("{}, you will find {kind} named {name}", capital(&place)),
                2 => format!("There is {kind} called {name} {place}"),
                _ => format!("{}, {name} is {kind}", capital(&place)),
            },
            (None, None) => match random.below(2) {
                0 => format!("{name} is {kind}"),
                _ => format!("There is {kind} called {name}"),
            },
        };
        let rest = left.clauses(random);
        match rest.len() {
            0 => format!("{opening}."),
            _ => format!("{opening}. {}.", capital(&list(&rest))),
        }
    }

    /// Where it is, as "in the old town near Gull Bridge".
    fn place(&mut self, random: &mut Random) -> Option<String> {
        let area = self.area.take().map(|area| match area {
            "north bank" => format!("on the {area}"),
            "harbour" | "market square" => format!("{} the {area}", random.pick(&["by", "at"])),
            _ => format!("in the {area}"),
        });
        let near = self.near.take().map(|near| {
            let word = random.pick(&["near", "close to", "not far from", "next to"]);
            format!("{word} {near}")
        });
        match (area, near) {
            (Some(area), Some(near)) if random.chance(50) => Some(format!("{area}, {near}")),
            (Some(area), Some(near)) => Some(format!("{area} {near}")),
            (area, near) => area.or(near),
        }
    }

    /// The facts still untold, a clause each, in any order.
    fn clauses(&self, random: &mut Random) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        if let Some(rating) = self.rating {
            out.push(match random.below(4) {
                0 => format!("customers rate it {rating}"),
                1 => format!("its customer rating is {rating}"),
                2 => format!("it scores {rating} with its guests"),
                _ => format!("guests give it {rating}"),
            });
        }
        if let Some(price) = self.price {
            let word = if price == "mid-range" { random.pick(&["moderate", "mid-range"]) } else { price };
            out.push(match random.below(3) {
                0 => format!("prices are {word}"),
                1 => format!("its price range is {word}"),
                _ => format!("the bill will be {word}"),
            });
        }
        match self.family {
            Some("yes") => out.push(
                random
                    .pick(&[
                        "children are welcome",
                        "it is a good choice for families",
                        "families are welcome",
                    ])
                    .into(),
            ),
            Some(_) => out.push(
                random
                    .pick(&[
                        "it is not for children",
                        "it does not cater to families",
                        "children are not admitted",
                    ])
                    .into(),
            ),
            None => {}
        }
        for i in (1..out.len()).rev() {
            out.swap(i, random.below(i + 1));
        }
        out
    }
}

fn article(next: &str) -> &'static str {
    if next.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U']) { "an" } else { "a" }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn list(clauses: &[String]) -> String {
    match clauses {
        [a, b] => format!("{a} and {b}"),
        [a, b, c] => format!("{a}, {b} and {c}"),
        _ => clauses.join(", "),
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * n as u128) >> 64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from[self.below(from.len())]
    }
}

/// A prompt and a completion.
pub type Pair = (String, String);

/// The lines of training and of evaluation, whose prompts have nothing in common.
pub fn generate(train: usize, eval: usize, seed: u64) -> (Vec<Pair>, Vec<Pair>) {
    let mut random = Random(seed);
    let mut seen = HashSet::new();
    let mut part = |lines: usize, most_each: usize| {
        let mut out = Vec::with_capacity(lines);
        while out.len() < lines {
            let place = Place::random(&mut random);
            if !seen.insert(place) {
                continue;
            }
            let mut told = HashSet::new();
            for _ in 0..1 + random.below(most_each) {
                let text = place.describe(&mut random);
                if out.len() < lines && told.insert(text.clone()) {
                    out.push((place.prompt(), text));
                }
            }
        }
        out
    };
    let eval = part(eval, 1);
    (part(train, 4), eval)
}

fn write(path: &Path, pairs: &[Pair]) -> Result<(), String> {
    let mut text = String::new();
    for (prompt, completion) in pairs {
        // Neither holds a quote, a backslash or a control character.
        writeln!(text, "{{\"prompt\": \"{prompt}\", \"completion\": \"{completion}\"}}")
            .expect("a string takes all");
    }
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

const USAGE: &str = "usage: restaurants --out DIR [--train 480] [--eval 60] [--seed 1]";

fn run() -> Result<(), String> {
    let (mut out, mut train, mut eval, mut seed) = (None, 480, 60, 1);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        let number =
            || value.parse::<usize>().map_err(|_| format!("{name} takes a number, not {value:?}\n{USAGE}"));
        match name.as_str() {
            "--out" => out = Some(PathBuf::from(value)),
            "--train" => train = number()?,
            "--eval" => eval = number()?,
            "--seed" => seed = number()? as u64,
            _ => return Err(USAGE.into()),
        }
    }
    let out = out.ok_or(USAGE)?;
    if train > MOST_LINES || eval > MOST_LINES {
        return Err(format!("at most {MOST_LINES} lines a file"));
    }
    std::fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let (train, eval) = generate(train, eval, seed);
    write(&out.join("train.jsonl"), &train)?;
    write(&out.join("eval.jsonl"), &eval)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}
