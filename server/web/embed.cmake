# cmake -DFOLDER=... -DFILES=... -DOUT=... -P embed.cmake: the files as arrays in one C++ file, as web_files.h declares them.
set(type_html "text/html; charset=utf-8")
set(type_css "text/css; charset=utf-8")
set(type_js "text/javascript; charset=utf-8")
set(type_svg "image/svg+xml")

set(arrays "")
set(table "")
foreach(name IN LISTS FILES)
  string(REGEX REPLACE ".*\\." "" extension ${name})
  string(MAKE_C_IDENTIFIER ${name} id)
  file(READ ${FOLDER}/${name} hex HEX)
  file(SHA256 ${FOLDER}/${name} hash)
  string(SUBSTRING ${hash} 0 16 hash)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(APPEND arrays "constexpr unsigned char ${id}[] = {${bytes}};\n")
  set(path "/web/${name}")
  if(name STREQUAL "index.html")
    set(path "/")
  endif()
  string(APPEND table "    {\"${path}\", \"${type_${extension}}\", \"\\\"${hash}\\\"\", View(${id})},\n")
endforeach()

file(WRITE ${OUT} "// Made by embed.cmake.
#include \"server/web/web_files.h\"

namespace t6::server {
namespace {

${arrays}
template <size_t kSize>
std::string_view View(const unsigned char (&bytes)[kSize]) {
  return {reinterpret_cast<const char*>(bytes), kSize};
}

}  // namespace

std::span<const WebFile> WebFiles() {
  static const WebFile kFiles[] = {
${table}  };
  return kFiles;
}

}  // namespace t6::server
")
