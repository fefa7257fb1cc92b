# The CPU addon. Most of its sources are listed in native/sources.json, which CMakeLists.txt reads too.
{
  'targets': [
    {
      'target_name': 'desap',
      'sources': [
        "<!@(node -p \"require('./native/sources.json').cpu.join(' ')\")",
        "<!@(node -p \"require('./native/sources.json').binding.join(' ')\")",
        'native/binding/device_cpu.cc',
      ],
      'include_dirs': ["<!(node -p \"require('node-addon-api').include_dir\")"],
      'cflags!': ['-O2'],
      'cflags_cc!': ['-std=gnu++17', '-std=gnu++20', '-fno-exceptions', '-fno-rtti'],
      'cflags_cc': ['-std=c++17', '-O3', '-ffp-contract=fast', '-fvisibility=hidden', '-Wall', '-Wextra'],
      'conditions': [
        # Nothing but the entry points is exported, so two addons in one process cannot take each other's symbols.
        ['OS=="linux"', { 'ldflags': ['-Wl,--exclude-libs,ALL'] }],
        [
          # The kernels are in the vector types of GCC and clang.
          'OS=="win"',
          {
            'msbuild_toolset': 'ClangCL',
            'msvs_settings': {
              'VCCLCompilerTool': {
                'ExceptionHandling': 1,
                'AdditionalOptions': ['/std:c++17', '/clang:-O3', '/clang:-ffp-contract=fast'],
              },
            },
          },
        ],
        [
          'OS=="mac"',
          {
            'xcode_settings': {
              'CLANG_CXX_LANGUAGE_STANDARD': 'c++17',
              'CLANG_CXX_LIBRARY': 'libc++',
              'GCC_ENABLE_CPP_EXCEPTIONS': 'YES',
              'GCC_ENABLE_CPP_RTTI': 'YES',
              'GCC_OPTIMIZATION_LEVEL': '3',
              'GCC_SYMBOLS_PRIVATE_EXTERN': 'YES',
              'MACOSX_DEPLOYMENT_TARGET': '11.0',
              'OTHER_CPLUSPLUSFLAGS': ['-ffp-contract=fast', '-Wall', '-Wextra'],
            },
          },
        ],
      ],
    },
  ],
}
