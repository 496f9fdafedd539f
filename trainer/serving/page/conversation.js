// A conversation as data, and the bodies of requests and the exported line that are made from it.
//
// A round: {question, pictures, system, answer, note, isFault, usage, firstSeconds, seconds}
//   answer         null until the first text of it has come; an answer may be empty
//   note           what else there is to say: that it was stopped or cut off, or what went wrong
//   firstSeconds   until the first piece; seconds: until the last; both null if they are not known
//
// Rule: only the last round may have no answer, so that questions and answers alternate as in training.

/** What a round has in addition to its question before it is answered. */
export const unanswered = { answer: null, note: "", isFault: false, usage: null, firstSeconds: null, seconds: null };

export function newRound({ question, pictures, system }) {
  return { question, pictures, system, ...unanswered };
}

/** The rounds without a last one that has no answer: what a new question follows. */
export function answered(rounds) {
  return rounds.filter((round) => round.answer !== null);
}

/** The body of POST /v1/chat/completions that asks the last round's question. sampling: only what is set. */
export async function chatBody({ model, rounds, sampling }) {
  return {
    ...(await promptBody({ model, rounds })),
    ...sampling,
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** The body of POST /v1/prompt: what the ids depend on. */
export async function promptBody({ model, rounds }) {
  return { model, messages: await messagesOf(rounds, (url) => ({ type: "image_url", image_url: { url } })) };
}

/** The conversation as one line that dsvl-prep's chat adapter reads, with its images inside. */
export async function exportedLine(rounds) {
  const messages = await messagesOf(answered(rounds), (image) => ({ type: "image", image }));
  return `${JSON.stringify({ messages })}\n`;
}

/** Messages as the compiler writes them: images come before their question. The last question has no answer yet. */
async function messagesOf(rounds, imagePart) {
  const system = rounds.at(-1)?.system;
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const round of rounds) {
    const parts = (await Promise.all(round.pictures.map((picture) => picture.dataUri()))).map(imagePart);
    if (round.question && parts.length) parts.push({ type: "text", text: round.question });
    messages.push({ role: "user", content: parts.length ? parts : round.question });
    if (round.answer !== null) messages.push({ role: "assistant", content: round.answer });
  }
  return messages;
}
