/** Things that are tried one after the other: each says how it went, and those that failed make the program fail. */
export class Attempts {
  #failed = [];

  async try(name, work) {
    const start = performance.now();
    try {
      await work();
      console.log(`ok ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)`);
    } catch (error) {
      this.#failed.push(name);
      console.error(`FAILED ${name}: ${error.message}`);
    }
  }

  /** @param what they were, for the message */
  end(what) {
    if (this.#failed.length === 0) return;
    console.error(`${what}: ${this.#failed.join(', ')} failed`);
    process.exitCode = 1;
  }
}
