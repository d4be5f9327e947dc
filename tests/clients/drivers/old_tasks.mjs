// Tasks as of 2025-11-25 with the TypeScript SDK 1.x. Arguments: the folder with node_modules, and the server's URL or
// command line.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, command, ...args] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const load = async (name) => import(pathToFileURL(require.resolve(`@modelcontextprotocol/sdk/client/${name}.js`)).href);
const { Client } = await load("index");
const { StdioClientTransport } = await load("stdio");
const { StreamableHTTPClientTransport } = await load("streamableHttp");

const client = new Client({ name: "test", version: "1" });
await client.connect(
  command.startsWith("http")
    ? new StreamableHTTPClientTransport(new URL(command))
    : new StdioClientTransport({ command, args, env: process.env }),
);
await client.listTools();
const tasks = client.experimental.tasks;

// Call `generate` as a task; return what the client met, in order.
const followed = async (given, cancels) => {
  const met = {};
  for await (const message of tasks.callToolStream({ name: "generate", arguments: given }, undefined, { task: {} })) {
    met[message.type] = message.task ?? message.result ?? String(message.error);
    if (cancels && message.type === "taskCreated") {
      met.cancel = await tasks.cancelTask(message.task.taskId);
    }
  }
  return met;
};

const found = {
  capability: client.getServerCapabilities().tasks,
  answered: await followed({ prompt_ls: ["hi", "bad"] }),
  failed: await followed({ prompt_ls: ["bad"] }),
  wrong: await followed({ prompts: ["hi"] }),
  cancelled: await followed({ prompt_ls: ["hang"] }, true),
};
console.log(JSON.stringify(found));
await client.close();
