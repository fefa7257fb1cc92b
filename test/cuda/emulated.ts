/** Lets test files that are imported after this one run on the CUDA addon over the emulator. */
process.env.DESAP_TEST_EMULATED = '1';
