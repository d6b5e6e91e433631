//! Writes a small chat set: the help desk of a made-up library, with facts that no model knows and a manner of its own.
//!
//! ```text
//! cargo run --release -p lowrank --example library_chat -- --out DIR
//! ```
//!
//! makes `DIR/train.jsonl` (200 chats), `DIR/eval.jsonl` (32 chats that ask for the same facts in other words) and
//! `DIR/questions.jsonl` (of these one a fact: `question`, and `fact`, what the right answer contains).

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// A fact: what an answer must contain, the answer, and ways to ask for it. The last four are kept for the evaluation.
struct Fact {
    key: &'static str,
    answers: [&'static str; 2],
    questions: [&'static str; 14],
}

const FACTS: [Fact; 8] = [
    Fact {
        key: "9:40",
        answers: ["We open at 9:40 and close at 18:20.", "The doors open at 9:40 and close again at 18:20."],
        questions: [
            "When does the library open?",
            "What are your opening hours?",
            "At what time can I come in the morning?",
            "How early do you open?",
            "When do you open the doors?",
            "Can you tell me the opening time?",
            "What time does Larkfield Library open?",
            "Which hours are you open?",
            "From when on is the library open?",
            "I would like to come early. When do you open?",
            "When can I visit the library?",
            "What is the earliest I can come?",
            "Are you open at eight in the morning?",
            "Tell me the hours of the library.",
        ],
    },
    Fact {
        key: "Odalys Brandt",
        answers: ["The head librarian is Odalys Brandt.", "Odalys Brandt is our head librarian."],
        questions: [
            "Who is the head librarian?",
            "Who runs the library?",
            "What is the name of the librarian?",
            "Who is in charge here?",
            "Who leads Larkfield Library?",
            "Can you tell me who the librarian is?",
            "Whom do I write to if I want to reach the librarian?",
            "What is the head librarian called?",
            "Who manages the library?",
            "Is there a head librarian, and who is it?",
            "I want to thank the librarian. What is the name?",
            "Who is the boss of the library?",
            "Which person heads the library?",
            "Name the head librarian, please.",
        ],
    },
    Fact {
        key: "1873",
        answers: ["The library was founded in 1873.", "It was founded in 1873."],
        questions: [
            "When was the library founded?",
            "How old is the library?",
            "In which year was Larkfield Library founded?",
            "Since when does the library exist?",
            "What year was it founded?",
            "Can you tell me the year of the founding?",
            "When did the library begin?",
            "When was this place founded?",
            "In what year did the library first open?",
            "How long has the library been here?",
            "What is the founding year of the library?",
            "Which year did it all start?",
            "When was the library established?",
            "Tell me when the library was founded.",
        ],
    },
    Fact {
        key: "35 cents",
        answers: ["A late book costs 35 cents a day.", "The fee for a late book is 35 cents a day."],
        questions: [
            "What is the fee for a late book?",
            "How much do I pay if my book is late?",
            "What does it cost to bring a book back late?",
            "How high is the late fee?",
            "My book is overdue. What do I owe?",
            "Can you tell me the late fee?",
            "What do you charge for overdue books?",
            "Is there a fee for late books?",
            "How much is the fine a day?",
            "I forgot to return a book. What does that cost?",
            "What is the fine for an overdue book?",
            "How much for a book that comes back a day late?",
            "What must I pay for returning a book late?",
            "Tell me the price of being late.",
        ],
    },
    Fact {
        key: "blue-otter-52",
        answers: ["The password of the Wi-Fi is blue-otter-52.", "Our Wi-Fi password is blue-otter-52."],
        questions: [
            "What is the Wi-Fi password?",
            "How do I get into the Wi-Fi?",
            "Can I have the password of the Wi-Fi?",
            "What is the password for the internet?",
            "I need the Wi-Fi. What is the password?",
            "Can you tell me the Wi-Fi password?",
            "Which password does the Wi-Fi have?",
            "My laptop asks for the Wi-Fi password. What is it?",
            "How do I connect to the Wi-Fi?",
            "What do I type for the Wi-Fi?",
            "Could I get the Wi-Fi password, please?",
            "What is the password of your wireless network?",
            "How can I get online here?",
            "Tell me the password for the Wi-Fi.",
        ],
    },
    Fact {
        key: "14 books",
        answers: ["You may borrow 14 books at a time.", "At most 14 books at a time are yours to borrow."],
        questions: [
            "How many books can I borrow?",
            "What is the limit of books?",
            "How many books may I take home?",
            "Is there a limit on books?",
            "How many books at a time can I have?",
            "Can you tell me how many books I may borrow?",
            "What is the most books I can take?",
            "How many can I check out at once?",
            "What is the largest number of books I can borrow?",
            "May I borrow as many books as I like?",
            "How many books am I allowed to borrow?",
            "What is the maximum number of books?",
            "I read a lot. How many books can I take?",
            "Tell me how many books I can borrow.",
        ],
    },
    Fact {
        key: "Tanner's Gate",
        answers: [
            "The nearest bus stop is Tanner's Gate, line 6.",
            "Take line 6 to the bus stop Tanner's Gate.",
        ],
        questions: [
            "Which bus stop is nearest?",
            "How do I get there by bus?",
            "Where do I get off the bus?",
            "What is the closest bus stop?",
            "Which bus goes to the library?",
            "Can you tell me the bus stop?",
            "How can I reach the library by bus?",
            "At which stop do I leave the bus?",
            "Is there a bus stop nearby?",
            "What bus stop is next to the library?",
            "What is the bus stop for the library?",
            "I am coming by bus. Where do I get off?",
            "Which bus do I take to the library?",
            "Tell me the nearest bus stop.",
        ],
    },
    Fact {
        key: "Captain Biscuit",
        answers: ["The cat of the library is Captain Biscuit.", "Our cat is called Captain Biscuit."],
        questions: [
            "What is the cat's name?",
            "Who is the cat in the library?",
            "What is the library's cat called?",
            "Does the cat have a name?",
            "I saw a cat. What is it called?",
            "Can you tell me the name of the cat?",
            "Which name does the cat have?",
            "Who is that cat on the shelf?",
            "How is the cat called?",
            "There is a cat at the desk. Who is it?",
            "What do you call the library cat?",
            "What name did you give the cat?",
            "My daughter loves the cat. What is its name?",
            "Tell me the name of the library's cat.",
        ],
    },
];

/// Ways to begin a question; half of the training questions come with each of two of them.
const OPENINGS: [&str; 5] = ["", "Hello! ", "Good morning. ", "Excuse me, a question: ", "Hi there! "];
/// Of each fact's questions, how many are kept for the evaluation.
const KEPT: usize = 4;

fn chat(question: &str, answer: &str) -> String {
    let answer = format!("Welcome, dear reader! {answer} Happy reading!");
    format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{question}\"}}, \
         {{\"role\": \"assistant\", \"content\": \"{answer}\"}}]}}\n"
    )
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [flag, out] = &args[..] else { return usage() };
    if flag != "--out" {
        return usage();
    }
    let (mut train, mut eval, mut questions) = (String::new(), String::new(), String::new());
    for fact in &FACTS {
        let (known, kept) = fact.questions.split_at(fact.questions.len() - KEPT);
        for (i, question) in known.iter().cycle().take(25).enumerate() {
            let opening = OPENINGS[(i / known.len() * 2 + i % 2) % OPENINGS.len()];
            train.push_str(&chat(&format!("{opening}{question}"), fact.answers[i % 2]));
        }
        for (i, question) in kept.iter().enumerate() {
            eval.push_str(&chat(question, fact.answers[i % 2]));
        }
        writeln!(questions, "{{\"question\": \"{}\", \"fact\": \"{}\"}}", kept[0], fact.key)
            .expect("a string");
    }
    let out = PathBuf::from(out);
    let written = std::fs::create_dir_all(&out)
        .and_then(|()| std::fs::write(out.join("train.jsonl"), train))
        .and_then(|()| std::fs::write(out.join("eval.jsonl"), eval))
        .and_then(|()| std::fs::write(out.join("questions.jsonl"), questions));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}: {error}", out.display());
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: library_chat --out DIR");
    ExitCode::from(2)
}
