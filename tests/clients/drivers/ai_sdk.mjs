// Start the server as programs on the Vercel AI SDK do, and print what the client met. Arguments: the folder with
// node_modules, how often, and the server's command line or URL.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, times, command, ...args] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const load = async (name) => import(pathToFileURL(require.resolve(name)).href);
const { createMCPClient } = await load("@ai-sdk/mcp");
const { Experimental_StdioMCPTransport: StdioMCPTransport } = await load("@ai-sdk/mcp/mcp-stdio");

const met = [];
for (let start = 0; start < Number(times); start++) {
  const began = performance.now();
  const found = { start };
  let client;
  try {
    const transport = command.startsWith("http")
      ? { type: "http", url: command }
      : new StdioMCPTransport({ command, args, env: process.env });
    client = await createMCPClient({ transport });
    found.connected_s = (performance.now() - began) / 1000;
    found.version = client.initializeResult.protocolVersion;
    const tools = await client.tools();
    found.tools_s = (performance.now() - began) / 1000;
    found.tools = Object.keys(tools);
    const result = await tools.generate.execute({ prompt_ls: ["hi"] }, { toolCallId: "1", messages: [] });
    found.answers = JSON.parse(result.content[0].text).ans_ls;
  } catch (error) {
    found.error = String(error);
  } finally {
    await client?.close();
  }
  met.push(found);
}
console.log(JSON.stringify(met));
