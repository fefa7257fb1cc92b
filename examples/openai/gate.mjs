// One prefill at a time: the next request goes out when the one before has streamed its first token. Images of different K then never
// meet in one step of the engine. For the only client of a server: requests of others do not wait here.

const hasToken = ({ choices }) => choices?.some(({ delta, text }) => delta?.content || text);

/** Returns `gate(send)`: waits for its turn, calls `send` for the request's stream, and passes the chunks on. */
export function oneAtATime() {
  let last = Promise.resolve();
  return async function* gate(send) {
    const before = last;
    let release;
    last = new Promise((resolve) => {
      release = resolve;
    });
    try {
      await before;
      for await (const chunk of await send()) {
        if (hasToken(chunk)) release();
        yield chunk;
      }
    } finally {
      release();
    }
  };
}
