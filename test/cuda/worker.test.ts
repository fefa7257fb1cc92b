/** Worker threads on the CUDA addon, over the emulator: the same cases as on the CPU. */
import './emulated.js';
import '../worker.test.js';
