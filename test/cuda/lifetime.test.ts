/** Lifetimes on the CUDA addon, over the emulator: the same cases as on the CPU. */
import './emulated.js';
import '../lifetime.test.js';
