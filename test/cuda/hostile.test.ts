/** What the CPU addon is tested for, on the CUDA addon. */
import './emulated.js';
import '../hostile.test.js';
