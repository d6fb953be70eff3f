// Calls a server by OpenAI's own client, as its users do, and prints what came back as one line of JSON.
const OpenAI = require("openai");

async function main() {
  const client = new OpenAI({ baseURL: process.argv[2], apiKey: process.argv[3], maxRetries: 0 });
  const request = {
    model: "memspan/notes",
    messages: [{ role: "user", content: "Where does the otter live?" }],
    max_tokens: 6,
  };
  const models = await client.models.list();
  const whole = await client.chat.completions.create(request);
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  let refused = {};
  try {
    await client.chat.completions.create({ ...request, model: "memspan/none" });
  } catch (error) {
    refused = { status: error.status, code: error.code };
  }
  const message = whole.choices[0].message;
  console.log(
    JSON.stringify({
      models: models.data.map((model) => model.id),
      text: message.content,
      streamed: text.trim(),
      cited: message.annotations[0].url_citation.title,
      evidence: whole.memspan.evidence[0].id,
      refused,
    }),
  );
}

main();
