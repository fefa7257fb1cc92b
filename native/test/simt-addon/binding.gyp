# Addons for hardware that is not there: the same binding, host code and kernels over an emulation, so that their JavaScript is
# tested anywhere.
#   desap_cuda  the CUDA addon over native/test/simt; DESAP_CUDA_ADDON names it
#   desap       the CPU addon whose avx512bf16 is native/test/lanes16.cc; DESAP_PREBUILD names this folder
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
    {
      'target_name': 'desap',
      'sources': [
        "<!@(node -p \"const s = require('../../sources.json'); [...s.binding, ...s.cpu].filter((file) => !file.endsWith('/avx512bf16.cc')).map((file) => '../../../' + file).join(' ')\")",
        '../../binding/device_cpu.cc',
        '../lanes16.cc',
      ],
      'defines': ['DESAP_LANES16'],
      'include_dirs': ["<!(node -p \"require('node-addon-api').include_dir\")"],
      'cflags!': ['-O2'],
      'cflags_cc!': ['-std=gnu++17', '-std=gnu++20', '-fno-exceptions', '-fno-rtti'],
      'cflags_cc': ['-std=c++17', '-O3', '-ffp-contract=fast', '-fvisibility=hidden', '-Wall', '-Wextra', '-Wno-psabi'],
      'ldflags': ['-Wl,--exclude-libs,ALL'],
    },
  ],
}
