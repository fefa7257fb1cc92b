# The CUDA addon over the emulator (native/test/simt): the same binding, host code and kernels, compiled for the CPU, so
# that the JavaScript of the device `cuda` is tested on machines without a card. DESAP_CUDA_ADDON names it.
{
  'targets': [
    {
      'target_name': 'desap_cuda',
      'sources': [
        "<!@(node -p \"const s = require('../../sources.json'); [...s.binding, ...s.cuda].map((file) => '../../../' + file).join(' ')\")",
        '../../binding/device_cuda.cc',
        '../simt/runtime.cc',
        '../simt/simt.cc',
      ],
      'rules': [
        {
          # gyp does not know .cu.
          'rule_name': 'cuda',
          'extension': 'cu',
          'outputs': ['<(INTERMEDIATE_DIR)/<(RULE_INPUT_ROOT).cu.cc'],
          'action': ['cp', '<(RULE_INPUT_PATH)', '<@(_outputs)'],
          'process_outputs_as_sources': 1,
        },
      ],
      'defines': ['DESAP_SIMT'],
      'include_dirs': ['../simt', '../../cuda', "<!(node -p \"require('node-addon-api').include_dir\")"],
      'cflags!': ['-O3'],
      'cflags_cc!': ['-std=gnu++17', '-std=gnu++20', '-fno-exceptions', '-fno-rtti'],
      'cflags_cc': ['-std=c++17', '-O2', '-fvisibility=hidden', '-Wall', '-Wextra', '-Wno-unknown-pragmas'],
      'ldflags': ['-Wl,--exclude-libs,ALL'],
    },
  ],
}
