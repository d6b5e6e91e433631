// Greedy decoding with llama.cpp through node-llama-cpp: `node decode.mjs MODEL.gguf THREADS TOKENS PROMPT`.
// Prints one JSON line: the time of the prompt, of the tokens after the first, and how many these were.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";
import path from "node:path";

// From the folder it is started in, where the package was installed.
const from = createRequire(path.join(process.cwd(), "package.json"));
const {getLlama} = await import(pathToFileURL(from.resolve("node-llama-cpp")).href);

const [modelPath, threads, count, prompt] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, maxThreads: Number(threads)});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: 1024, threads: Number(threads)});
const sequence = context.getSequence();
const tokens = model.tokenize(prompt);
const start = performance.now();
let first, generated = 0;
for await (const _ of sequence.evaluate(tokens, {temperature: 0, yieldEogToken: true})) {
    first ??= performance.now();
    if (++generated === Number(count)) break;
}
const end = performance.now();
console.log(JSON.stringify({
    prompt_tokens: tokens.length,
    prompt_s: (first - start) / 1000,
    tokens: generated - 1,
    decode_s: (end - first) / 1000,
    cpu_s: (process.cpuUsage().user + process.cpuUsage().system) / 1e6
}));
await llama.dispose();
process.exit(0);
