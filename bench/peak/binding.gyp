# The processor's peaks for JavaScript benchmarks, as an addon.
{
  'targets': [
    {
      'target_name': 'peak',
      'sources': ['peak.cc'],
      'include_dirs': ["<!(node -p \"require('node-addon-api').include_dir\")"],
      'cflags!': ['-O2'],
      'cflags_cc!': ['-std=gnu++17', '-std=gnu++20', '-fno-exceptions', '-fno-rtti'],
      'cflags_cc': ['-std=c++17', '-O3', '-ffp-contract=fast', '-Wall', '-Wextra'],
      'conditions': [
        [
          'OS=="mac"',
          {
            'xcode_settings': {
              'CLANG_CXX_LANGUAGE_STANDARD': 'c++17',
              'GCC_ENABLE_CPP_EXCEPTIONS': 'YES',
              'GCC_OPTIMIZATION_LEVEL': '3',
              'OTHER_CPLUSPLUSFLAGS': ['-ffp-contract=fast'],
            },
          },
        ],
      ],
    },
  ],
}
