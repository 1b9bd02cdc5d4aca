// Asks llama.cpp's DRY sampler about histories of our own making, and prints its answers as JSON: one case a line.
//
// llama_cpp.json holds what it said, recorded once with llama.cpp as it is in the source distribution of
// llama-cpp-python 0.3.36 (vendor/llama.cpp), by g++ 12 on x86-64. Only the sampler's own file is compiled; what it
// calls elsewhere is below, and DRY uses none of it but the log, since its breakers are given as token ids.
//
//   pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36
//   tar xzf llama_cpp_python-0.3.36.tar.gz
//   cd llama_cpp_python-0.3.36/vendor/llama.cpp
//   FLAGS="-O1 -std=c++17 -ffunction-sections -fdata-sections -Iinclude -Isrc -Iggml/include"
//   g++ $FLAGS -c src/llama-sampler.cpp -o /tmp/sampler.o
//   g++ $FLAGS -c $REPOSITORY/tests/sampling/dry/llama_cpp.cpp -o /tmp/driver.o
//   g++ -Wl,--gc-sections /tmp/driver.o /tmp/sampler.o -o /tmp/dry
//   /tmp/dry > $REPOSITORY/tests/sampling/dry/llama_cpp.json
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <vector>

#include "llama-sampler.h"
#include "llama-vocab.h"

struct llama_vocab::impl {};
llama_vocab::llama_vocab() {}
llama_vocab::~llama_vocab() {}
uint32_t llama_vocab::n_tokens() const { abort(); }
std::string llama_vocab::detokenize(const std::vector<llama_token> &, bool) const { abort(); }
std::vector<llama_token> llama_vocab::tokenize(const std::string &, bool, bool) const { abort(); }
void ggml_abort(const char *, int, const char *, ...) { abort(); }
void llama_log_internal(ggml_log_level, const char *, ...) {}

// Not std::uniform_int_distribution, which each library makes up on its own.
static std::mt19937 source(20240607);
static int below(int limit) { return (int) (source() % (unsigned) limit); }
template <typename T> static T one_of(const std::vector<T> & choices) { return choices[below((int) choices.size())]; }

static const int VOCABULARY = 12;

static std::vector<int> history() {
    const int size = one_of<int>({1, 2, 5, 20, 40, 80, 120});
    const int letters = one_of<int>({1, 2, 3, 6, VOCABULARY});
    std::vector<int> ids(size);
    for (int & id : ids) id = below(letters);
    if (below(2)) {  // periodic, with a few tokens changed
        const int period = 1 + below(60);
        for (int i = period; i < size; i++) ids[i] = ids[i - period];
        for (int n = below(3); n > 0; n--) ids[below(size)] = below(VOCABULARY);
    }
    return ids;
}

template <typename T> static void print(const char * name, const T & values) {
    const char * separator = "";
    printf("\"%s\": [", name);
    for (int value : values) {
        printf("%s%d", separator, value);
        separator = ", ";
    }
    printf("], ");
}

static void ask() {
    const std::vector<int> ids = history();
    const float multiplier = one_of<float>({0.5f, 0.8f, 3.0f, 1000.0f});
    const float base = one_of<float>({1.0f, 1.25f, 1.75f, 4.0f, 100.0f});
    const int allowed_length = one_of<int>({1, 1, 2, 2, 3, 5, 20});
    const int range = below(3) ? (int) ids.size() : 1 + below((int) ids.size() + 5);
    std::set<int> breakers;
    std::vector<std::vector<int>> sequences;
    for (int n = below(3); n > 0; n--) breakers.insert(below(VOCABULARY));
    for (int id : breakers) sequences.push_back({id});

    llama_sampler * dry = llama_sampler_init_dry_testing(multiplier, base, allowed_length, range, sequences);
    for (int id : ids) llama_sampler_accept(dry, id);
    std::vector<llama_token_data> logits(VOCABULARY);
    for (int id = 0; id < VOCABULARY; id++) logits[id] = {id, 0.0f, 0.0f};
    llama_token_data_array all = {logits.data(), logits.size(), -1, false};
    llama_sampler_apply(dry, &all);

    printf("{");
    print("token_ids", ids);
    print("breakers", breakers);
    printf("\"multiplier\": %g, \"base\": %g, \"allowed_length\": %d, ", multiplier, base, allowed_length);
    printf("\"range\": %d, \"penalties\": {", range);
    const char * separator = "";
    for (const llama_token_data & one : logits) {
        if (one.logit == 0.0f) continue;
        // JSON has no infinity, but numbers that are read as it.
        printf(std::isinf(one.logit) ? "%s\"%d\": 1e999" : "%s\"%d\": %.9g", separator, one.id, -one.logit);
        separator = ", ";
    }
    printf("}}");
    llama_sampler_free(dry);
}

int main() {
    for (int n = 0; n < 400; n++) {
        printf(n ? ",\n" : "[\n");
        ask();
    }
    printf("\n]\n");
}
