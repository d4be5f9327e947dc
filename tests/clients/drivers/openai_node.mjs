// OpenAI's client for Node at a server's URL; prints what it met.
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, baseURL, apiKey] = process.argv.slice(2);
const path = createRequire(join(folder, "x.js")).resolve("openai");
const { default: OpenAI } = await import(pathToFileURL(path));
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "hi there" }];
const asked = { model: "default", messages };
const found = { models: [] };
for await (const model of client.models.list()) found.models.push(model.id);
found.chat = (await client.chat.completions.create(asked)).choices[0].message.content;
const stream = client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
found.stream = (await stream.finalChatCompletion()).choices[0].message.content;
found.usage = (await stream.totalUsage()).total_tokens;
found.responses = (await client.responses.create({ model: "default", input: "hi there" })).output_text;
const answering = client.responses.stream({ model: "default", input: "hi there" });
found.responsesStream = (await answering.finalResponse()).output_text;
const thinks = { role: "user", content: "think" };
const look = { name: "look", parameters: { type: "object", properties: {} } };
const thinking = client.chat.completions.stream({ ...asked, messages: [thinks], tools: [{ type: "function", function: look }] });
found.order = [];
for await (const { choices: [{ delta }] } of thinking) {
  const kind = ["reasoning_content", "content", "tool_calls"].find((name) => delta[name]?.length);
  if (kind && found.order.at(-1) !== kind) found.order.push(kind);
}
const called = (await thinking.finalChatCompletion()).choices[0].message.tool_calls;
found.called = called.map((call) => [call.id, call.function.name, call.function.arguments]);
const acting = client.responses.stream({ model: "default", input: [thinks], tools: [{ type: "function", ...look }] });
const items = (await acting.finalResponse()).output;
found.items = items.map((item) => [item.type, item.arguments ?? item.content[0].text]);
const embedded = await client.embeddings.create({ model: "default", input: "a" });
found.embedding = embedded.data[0].embedding;
try {
  await client.chat.completions.create({ ...asked, web_search_options: {} });
} catch (error) {
  found.refused = [error.status, error.param, error.message, Boolean(error.requestID)];
}
try {
  await client.models.retrieve("none");
} catch (error) {
  found.unknown = [error.constructor.name, error.code];
}
console.log(JSON.stringify(found));
