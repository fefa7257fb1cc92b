// Reads test/golden/*.safetensors: an 8-byte length, a JSON header, the tensors. The header is searched as text.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace desap::test {

class Golden {
 public:
  // From the folder that the program was built with, or that the environment's DESAP_GOLDEN names: a program may be carried
  // to a machine that has a GPU.
  explicit Golden(const std::string& name) {
    const char* folder = std::getenv("DESAP_GOLDEN");
    std::ifstream file(std::string(folder ? folder : DESAP_GOLDEN) + "/" + name + ".safetensors", std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    uint64_t length = 0;
    if (all.size() < sizeof length) return;
    std::memcpy(&length, all.data(), sizeof length);
    header_ = all.substr(sizeof length, length);
    data_ = all.substr(sizeof length + length);
  }

  bool found() const { return !header_.empty(); }

  // A value of the config, which is JSON inside a JSON string; empty where it is not there.
  std::string config(const std::string& key) const {
    const std::string quoted = "\\\"" + key + "\\\": ";
    const size_t at = header_.find(quoted);
    if (at == std::string::npos) return "";
    const size_t begin = at + quoted.size();
    std::string value = header_.substr(begin, header_.find_first_of(",}", begin) - begin);
    for (size_t mark; (mark = value.find("\\\"")) != std::string::npos;) value.erase(mark, 2);
    return value;
  }

  std::vector<int64_t> shape(const std::string& name) const { return list(name, "\"shape\":["); }

  template <class T>
  std::vector<T> tensor(const std::string& name) const {
    const std::vector<int64_t> range = list(name, "\"data_offsets\":[");
    std::vector<T> x(static_cast<size_t>(range[1] - range[0]) / sizeof(T));
    std::memcpy(x.data(), data_.data() + range[0], x.size() * sizeof(T));
    return x;
  }

 private:
  std::vector<int64_t> list(const std::string& name, const char* field) const {
    const char* p = std::strstr(header_.c_str() + header_.find("\"" + name + "\":"), field) + std::strlen(field);
    std::vector<int64_t> values;
    for (char* end; *p != ']'; p = *end == ',' ? end + 1 : end) values.push_back(std::strtoll(p, &end, 10));
    return values;
  }

  std::string header_, data_;
};

}  // namespace desap::test
