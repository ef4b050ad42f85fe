// OpenAI's own client for Node. Reads and tells the same lines as serve.py; PACKAGE names which of its versions.
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const load = createRequire(join(process.cwd(), "node_modules", "x"));
const OpenAI = load(process.env.PACKAGE);
const { zodResponseFormat } = load(`${process.env.PACKAGE}/helpers/zod`);
const { z } = load("zod");

const model = "gpt-4o-mini";
const asks = (content) => [{ role: "user", content }];
const openai = (user) =>
  new OpenAI({
    baseURL: process.env.BASE_URL,
    apiKey: "callers-own",
    maxRetries: 0,
    defaultHeaders: { "X-User-ID": user },
  });
const client = (user) => openai(user).chat.completions;
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { at: { type: "string" } }, required: ["at"] },
    parse: JSON.parse,
    function: ({ at }) => `sun in ${at}`,
  },
};

const functions = {
  async chat({ user, text, model: named = model }, signal) {
    const answer = await client(user).create({ model: named, messages: asks(text) }, { signal });
    const { usage, memoryos, choices } = answer;
    return { text: choices[0].message.content, tokens: usage.total_tokens, event_id: memoryos.event_id };
  },
  async stream({ user, text, model: named = model }, signal) {
    const request = { model: named, messages: asks(text), stream: true, stream_options: { include_usage: true } };
    const pieces = [];
    let tokens = 0;
    for await (const chunk of await client(user).create(request, { signal })) {
      if (chunk.choices[0]?.delta.content) pieces.push(chunk.choices[0].delta.content);
      tokens += chunk.usage?.total_tokens ?? 0;
    }
    return { pieces, tokens };
  },
  async tools({ user, text, streamed }) {
    const runner = client(user).runTools({ model, messages: asks(text), tools: [weather], stream: streamed });
    return { text: await runner.finalContent() };
  },
  async structured({ user, text }) {
    const shape = z.object({ place: z.string(), degrees: z.number() });
    const request = { model, messages: asks(text), response_format: zodResponseFormat(shape, "weather") };
    return (await client(user).parse(request)).choices[0].message.parsed;
  },
  async responses({ user, text }) {
    const stream = openai(user).responses.stream({ model, input: text });
    return { text: (await stream.finalResponse()).output_text };
  },
};

const kinds = (error) => {
  const found = [];
  for (let of = error; of; of = Object.getPrototypeOf(of)) found.push(of.constructor.name);
  return found;
};
const outcome = (call) =>
  call.catch((error) => ({
    error: `openai.${error.constructor.name}`,
    kinds: kinds(error),
    status: error.status,
    code: error.code,
    retry_after: error.headers?.get("retry-after"),
    message: String(error),
  }));

let begun;
let controller;
for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, begin, ...rest } = JSON.parse(line);
  let told = {};
  if (begin) {
    controller = new AbortController();
    begun = outcome(functions[begin](rest, controller.signal));
  } else if (name === "cancel") {
    controller.abort();
    told = await begun;
  } else {
    told = await outcome(functions[name](rest));
  }
  console.log(JSON.stringify(told));
}
