// Greedy decoding of several sequences in one batch with llama.cpp through node-llama-cpp:
// `node batch.mjs MODEL.gguf THREADS SEQUENCES TOKENS ROUNDS`. Prints tokens/s of each round, end tokens ignored.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";
import path from "node:path";

// From the folder it is started in, where the package was installed.
const from = createRequire(path.join(process.cwd(), "package.json"));
const {getLlama} = await import(pathToFileURL(from.resolve("node-llama-cpp")).href);

const [modelPath, threads, sequences, count, rounds] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, maxThreads: Number(threads)});
const model = await llama.loadModel({modelPath});
const options = {sequences: Number(sequences), contextSize: 256, batchSize: 512, threads: Number(threads)};
const context = await model.createContext(options);
const lanes = Array.from({length: Number(sequences)}, () => context.getSequence());

async function continued(lane, prompt) {
    await lane.clearHistory();
    let generated = 0;
    for await (const _ of lane.evaluate(model.tokenize(prompt), {temperature: 0, yieldEogToken: true})) {
        if (++generated === Number(count)) break;
    }
    return generated;
}

for (let round = 0; round <= Number(rounds); round++) {
    const start = performance.now();
    const done = await Promise.all(lanes.map((lane, i) => continued(lane, `The river ${i} ${round}`)));
    const rate = done.reduce((a, b) => a + b) / ((performance.now() - start) / 1000);
    // The first round warms up.
    if (round > 0) console.log(rate.toFixed(1));
}
await llama.dispose();
process.exit(0);
