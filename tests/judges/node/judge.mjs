// OpenAI's package for Node against a daemon; prints what it saw as one line of JSON.
// Arguments: base URL of a daemon with the real engine, of one with the fake engine, of a busy one.
import OpenAI from "openai";

const [realURL, actingURL, busyURL] = process.argv.slice(2);
const clientOf = (baseURL, maxRetries) => new OpenAI({ baseURL, apiKey: "none", maxRetries });
const real = clientOf(realURL, 0);
const acting = clientOf(actingURL, 2);
const chat = {
  model: "tiny",
  messages: [{ role: "user", content: "hi" }],
  max_tokens: 24,
  ignore_eos: true,
  temperature: 1,
  seed: 1,
};

async function failure(request) {
  try {
    await request();
  } catch (error) {
    return [error.constructor.name, error.status ?? null, error.code ?? null, error.message];
  }
  return null;
}

async function chatTwice() {
  const whole = await real.chat.completions.create(chat);
  const stream = await real.chat.completions.create({
    ...chat,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return { same: text === whole.choices[0].message.content, usage: usage.completion_tokens };
}

async function helper() {
  const stream = real.chat.completions.stream(chat);
  const final = await stream.finalChatCompletion();
  return final.choices[0].finish_reason;
}

async function rawResponse() {
  const { data, response, request_id } = await real.completions
    .create({ model: "tiny", prompt: "hi", max_tokens: 3 }, { headers: { "x-request-id": "mine-1" } })
    .withResponse();
  return { tokens: data.usage.completion_tokens, requestId: request_id, timing: response.headers.get("server-timing") };
}

async function cancelled() {
  const stream = await acting.completions.create({ model: "slow", prompt: "x", stream: true });
  for await (const _ of stream) break; // leaving the loop aborts the request
  return true;
}

async function drain(stream) {
  for await (const _ of stream);
}

async function busy() {
  const client = clientOf(busyURL, 20);
  const running = await client.completions.create({ model: "steady", prompt: "x", stream: true, max_tokens: 200 });
  const reading = drain(running);
  const refused = await failure(() =>
    clientOf(busyURL, 0).completions.create({ model: "steady", prompt: "x", max_tokens: 1 }));
  const served = await client.completions.create({ model: "steady", prompt: "x", max_tokens: 1 });
  await reading;
  return { refused, served: served.usage.completion_tokens };
}

const models = [];
for await (const model of real.models.list()) models.push(model.id);
console.log(JSON.stringify({
  models,
  chat: await chatTwice(),
  helper: await helper(),
  raw: await rawResponse(),
  cancelled: await cancelled(),
  busy: await busy(),
  failures: {
    unknownModel: await failure(() => real.completions.create({ model: "nope", prompt: "x" })),
    tooLong: await failure(() => real.completions.create({ model: "tiny", prompt: "x".repeat(3000) })),
    unbuildable: await failure(() => acting.completions.create({ model: "unbuildable", prompt: "x" })),
    breaks: await failure(async () =>
      drain(await acting.completions.create({ model: "breaks", prompt: "x", stream: true }))),
  },
}));
