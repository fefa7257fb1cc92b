# The CPU addon. Its kernels are listed in native/sources.json, which the native tests read too.
{
  'targets': [
    {
      'target_name': 'desap',
      'sources': [
        "<!@(node -p \"require('./native/sources.json').cpu.join(' ')\")",
        'native/binding/addon.cc',
        'native/binding/analysis_object.cc',
        'native/binding/arguments.cc',
        'native/binding/context_object.cc',
        'native/binding/device_cpu.cc',
        'native/binding/errors.cc',
        'native/binding/executor.cc',
        'native/binding/head_object.cc',
        'native/binding/host_buffer.cc',
        'native/binding/host_pool.cc',
        'native/binding/kernel_calls.cc',
      ],
      'include_dirs': ["<!(node -p \"require('node-addon-api').include_dir\")"],
      'cflags!': ['-O2'],
      'cflags_cc!': ['-std=gnu++17', '-std=gnu++20', '-fno-exceptions', '-fno-rtti'],
      'cflags_cc': ['-std=c++17', '-O3', '-ffp-contract=fast', '-fvisibility=hidden', '-Wall', '-Wextra'],
      'conditions': [
        # Nothing but the entry points is exported, so two addons in one process cannot take each other's symbols.
        ['OS=="linux"', { 'ldflags': ['-Wl,--exclude-libs,ALL'] }],
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
