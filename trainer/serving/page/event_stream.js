// Server-sent events of a response body, however its bytes are cut.
// Format: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

/** The data of each event. body: ReadableStream of bytes. An event that the end cuts off is dropped, as the format says. */
export async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      // a carriage return at the end may be the first half of a line end
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection may have failed already
  }
}
