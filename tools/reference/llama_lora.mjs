// Greedy text of llama.cpp with a GGUF adapter, next to Lowrank's with the same file's adapter folder.
//
//     npm install --prefix DIR node-llama-cpp && cd DIR
//     node .../tools/reference/llama_lora.mjs --lowrank target/release/lowrank --gguf MODEL.gguf --adapter FOLDER
//
// MODEL should be of F32, as `lowrank merge --model Q4_1.gguf --adapter FOLDER:0 --out MODEL.gguf --dtype f32` makes it: on
// quantised weights llama.cpp also quantises what meets them, so that near ties fall differently. One thread, since more
// of llama.cpp's wait for each other actively.
//
// Converts FOLDER with `lowrank convert --to gguf`, has llama.cpp (--lora) and Lowrank continue the same prompts token by
// token, and fails where a text differs. For each prompt the base alone must say something else, or nothing is shown.
import {execFileSync} from "node:child_process";
import {mkdtempSync, rmSync} from "node:fs";
import {createRequire} from "node:module";
import {tmpdir} from "node:os";
import path from "node:path";
import {pathToFileURL} from "node:url";
import {parseArgs} from "node:util";

const {values: args} = parseArgs({options: {
    lowrank: {type: "string"}, gguf: {type: "string"}, adapter: {type: "string"},
    tokens: {type: "string", default: "32"}
}});
const prompts = [
    "The capital of France is",
    "Once upon a time there was a",
    "name[The Eagle], eatType[coffee shop], food[Italian]",
    "def add(a, b):"
];
const count = Number(args.tokens);
const work = mkdtempSync(path.join(tmpdir(), "llama-lora-"));
const file = path.join(work, "adapter.gguf");
const lowrank = (...words) => execFileSync(args.lowrank, words, {encoding: "utf8", stdio: ["ignore", "pipe", "ignore"]});
lowrank("convert", args.adapter, "--to", "gguf", "--base", args.gguf, "--out", file);

// From the folder it is started in, where the package was installed.
const from = createRequire(path.join(process.cwd(), "package.json"));
const {getLlama} = await import(pathToFileURL(from.resolve("node-llama-cpp")).href);
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, maxThreads: 1});
const model = await llama.loadModel({modelPath: args.gguf});

async function theirs(prompt, lora) {
    const context = await model.createContext({contextSize: 256, threads: 1, lora});
    const sequence = context.getSequence();
    const out = [];
    for await (const token of sequence.evaluate(model.tokenize(prompt), {temperature: 0})) {
        out.push(token);
        if (out.length === count) break;
    }
    await context.dispose();
    return model.detokenize(out);
}

const ours = (prompt) => lowrank("generate", "--model", args.gguf, "--adapter", args.adapter, "--prompt", prompt,
    "--temperature", "0", "--max-new-tokens", String(count));

let failed = false;
for (const prompt of prompts) {
    const [base, with_adapter] = [await theirs(prompt), await theirs(prompt, {adapters: [{filePath: file, scale: 1}]})];
    const text = ours(prompt);
    const same = text.replace(prompt, "").trim() === with_adapter.trim();
    failed ||= !same || base === with_adapter;
    console.log(JSON.stringify({prompt, same, adapter_matters: base !== with_adapter, llama_cpp: with_adapter, ...(same ? {} : {lowrank: text})}));
}
rmSync(work, {recursive: true});
await llama.dispose();
process.exit(failed ? 1 : 0);
