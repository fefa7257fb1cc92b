# What glibc's malloc has given out, as an addon.
{
  'targets': [
    {
      'target_name': 'malloc',
      'sources': ['malloc.cc'],
      'include_dirs': ["<!(node -p \"require('node-addon-api').include_dir\")"],
      'cflags_cc!': ['-std=gnu++17', '-std=gnu++20', '-fno-exceptions', '-fno-rtti'],
      'cflags_cc': ['-std=c++17', '-Wall', '-Wextra'],
    },
  ],
}
